"""`elva plan`: memory, work and time of a run on other hardware, from its compiled step."""
