"""Renders a chat template from standard input to standard output, with limits; run as a script."""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

MEMORY_LIMIT = 512 << 20  # bytes more than the process has at its start
LONGEST = 1 << 20  # characters of a rendered conversation


def render(request: dict[str, Any], seconds: int) -> dict[str, str]:
    """Renders in this process, which the limits end; `seconds` are of processor time."""
    # Imported late: only the process of its own needs it, before its memory is limited.
    from transformers.utils.chat_template_utils import render_jinja_template  # noqa: PLC0415

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds += int(used.ru_utime + used.ru_stime) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    if sys.platform == "linux":  # elsewhere there is no such limit, or no such file
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[0])
        limit = pages * resource.getpagesize() + MEMORY_LIMIT
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        text = str(render_jinja_template(**request)[0][0])
    except MemoryError:
        return {"error": f"it takes more than {MEMORY_LIMIT >> 20} MiB"}
    except Exception as error:  # a template can raise anything
        return {"error": (str(error) or type(error).__name__).splitlines()[0][:300]}
    if len(text) > LONGEST:
        return {"error": f"it makes more than {LONGEST:,} characters of a short conversation"}
    return {"text": text}


if __name__ == "__main__":
    json.dump(render(**json.load(sys.stdin)), sys.stdout)
