"""Whether a person watches the output."""

from __future__ import annotations

import os

from rich.console import Console

# Set in the processes that mpirun and srun start. Some of these have a pseudo-terminal, whose
# content is forwarded to a log or mixed with that of others.
LAUNCHED = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID", "ELVA_PROCESS_ID")


def is_watched(console: Console) -> bool:
    """Whether a console is the terminal of a process that no launcher started."""
    return console.is_terminal and not any(name in os.environ for name in LAUNCHED)
