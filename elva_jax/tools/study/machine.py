"""The machine and the commit that a result comes from."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import elva_jax
from elva_jax.version import __version__


def describe_machine() -> dict[str, Any]:
    """Processor, cores that this process may use, and the versions and commit of the code."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "elva_jax": __version__,
        "commit": _commit(),
    }


def _processor() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _commit() -> str:
    """The commit of the package's checkout, with a plus where files differ; "": no checkout."""
    folder = Path(elva_jax.__file__).parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if not Path(git("rev-parse", "--show-toplevel"), "elva_jax").samefile(folder):
            return ""
        changed = git("status", "--porcelain", "--untracked-files=no", "--", str(folder))
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
