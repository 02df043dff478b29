"""Conversations whose next question a task makes from the answers so far.

Each round is a question of its own, as in the models that come with lmms-eval: a task that wants
the earlier turns read again puts them into its next prompt.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from elva_jax.errors import ElvaError
from elva_jax.evaluation.lmms.pipeline import Job, Reply
from elva_jax.evaluation.lmms.requests import Ask, chat_ask, simple_ask
from elva_jax.inference.batches.queries import Writing

MOST_ROUNDS = 256
_LOG = logging.getLogger(__name__)

# From the round, the answers so far and the task's own notes: the next question, or None at the
# end; the answers as the task leaves them; its notes.
Next = Callable[[int, list[str], Any], tuple[Ask | None, Sequence[Any], Any]]


class Rounds:
    """One request of several rounds.

    Args:
      first: makes the first question.
      following: makes the others.
      writing: how answers are written.
      name: of the request.
      skipped: see `Job`.

    Attributes:
      job: the next question; None at the end.
      outputs: the answers, as the task leaves them.
      replies: of all rounds.
    """

    def __init__(
        self,
        first: Callable[[], Ask],
        following: Next,
        writing: Writing,
        *,
        name: str,
        skipped: bool,
    ) -> None:
        self._following, self._writing = following, writing
        self._name, self._skipped = name, skipped
        self._info: Any = None
        self.outputs: list[Any] = []
        self.replies: list[Reply] = []
        self.job: Job | None = self._job(first)

    def add(self, reply: Reply) -> None:
        """Takes the answer of a round, and makes the next question."""
        self.replies.append(reply)
        self.outputs.append(reply.text)
        self.job = None
        if self._skipped:
            return
        if len(self.replies) == MOST_ROUNDS:
            _LOG.warning("%s: ended after %d rounds", self._name, MOST_ROUNDS)
            return
        try:
            ask, outputs, self._info = self._following(
                len(self.replies), list(self.outputs), self._info
            )
        except SystemExit as error:
            _LOG.warning("%s: the task ended the process: %s", self._name, error.code)
            return
        except (OSError, ElvaError) as error:
            ask, outputs = Ask(refused=str(error)), self.outputs
        self.outputs = list(outputs)
        if ask is not None:
            self.job = self._job(lambda: ask)

    def _job(self, make: Callable[[], Ask]) -> Job:
        return Job(
            name=f"{self._name} round {len(self.replies) + 1}",
            make=make,
            writing=self._writing,
            skipped=self._skipped,
        )


def simple_rounds(request: Any, doc: Any, writing: Writing, **common: Any) -> Rounds:
    """The rounds of a request of the simple interface."""
    context, _, visuals, doc_to_text, *_ = request.args

    def following(number: int, outputs: list[str], info: Any) -> tuple[Any, Sequence[Any], Any]:
        payload = doc_to_text(
            doc, previous_output=outputs, round_idx=number, previous_round_info=info
        )
        if isinstance(payload, str):
            return simple_ask(payload, None), outputs, info
        if not isinstance(payload, tuple) or len(payload) != 5:
            return None, outputs, info
        media, text, ended, left, info = payload
        left = outputs if left is None else left
        return None if ended else simple_ask(text, media), left, info

    return Rounds(lambda: simple_ask(context, visuals(doc)), following, writing, **common)


def chat_rounds(request: Any, doc: Any, writing: Writing, **common: Any) -> Rounds:
    """The rounds of a request of the chat interface."""
    _, messages, *_ = request.args

    def following(number: int, outputs: list[str], info: Any) -> tuple[Any, Sequence[Any], Any]:
        payload = messages(doc, round_idx=number, previous_output=outputs, previous_round_info=info)
        if not isinstance(payload, tuple) or len(payload) != 4:
            return None, outputs, info
        said, ended, left, info = payload
        left = outputs if left is None else left
        return None if ended else chat_ask(said), left, info

    return Rounds(lambda: chat_ask(messages(doc)), following, writing, **common)
