"""Rendering a tokenizer's chat template, with limits on its time, memory and output.

The templates of other tokenizers are programs. The sandbox of Jinja limits what they reach, not how
long they loop, so they run in a process of their own, which runs render_template.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

from elva_jax.data import render_template
from elva_jax.data.tokenizer import CHAT_TEMPLATE
from elva_jax.errors import DataError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TIME_LIMIT = 5  # seconds of processor time
WALL_LIMIT = 120.0  # seconds, with the start of the process on a slow disk


def render_bounded(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    """The text that a tokenizer's own chat template makes of messages.

    Raises:
      DataError: there is no template, it fails, or it exceeds a limit; the tokenizer is named.
    """
    where = f"tokenizer {tokenizer.name_or_path}"
    try:
        template = tokenizer.get_chat_template()
        if template == CHAT_TEMPLATE:
            return str(tokenizer.apply_chat_template(messages, tokenize=False))
        request = {
            "conversations": [messages],
            "chat_template": template,
            **{name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        }
    except ValueError as error:
        raise DataError(f"{where}: {first_line(error)}") from None
    try:
        done = subprocess.run(
            [sys.executable, "-P", render_template.__file__],
            input=json.dumps({"request": request, "seconds": TIME_LIMIT}).encode(),
            capture_output=True,
            timeout=WALL_LIMIT,
            check=False,
        )
        problem = (done.stderr.decode(errors="replace").splitlines() or ["no answer"])[-1]
        answer = json.loads(done.stdout) if done.returncode == 0 else {"error": problem}
        if done.returncode < 0:  # killed by the system at the limit
            raise TimeoutError
    except (subprocess.TimeoutExpired, TimeoutError):
        answer = {"error": f"it takes longer than {TIME_LIMIT} s"}
    if "error" in answer:
        raise DataError(f"{where}: its chat template cannot be used: {answer['error']}")
    return answer["text"]
