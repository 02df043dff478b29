"""An OpenAI-compatible HTTP server; `elva serve` starts it, and the extra `[serve]` installs it."""
