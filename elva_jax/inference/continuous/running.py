"""A request that runs, on the host: its tokens so far, its text, its times."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from elva_jax.config.schema import ModelConfig
from elva_jax.inference.continuous.prefixes import PrefixEntry
from elva_jax.inference.continuous.requests import Delta, Done, FinishReason, Seconds
from elva_jax.inference.continuous.ticket import Ticket
from elva_jax.inference.detokenize import tokens_before, visible
from elva_jax.inference.long_context import longest_of, stretch_of
from elva_jax.inference.prefilled import Answer


@dataclasses.dataclass(kw_only=True, eq=False)
class Running:
    """One request from `submit` to `Done`; times are those of `time.perf_counter`."""

    ticket: Ticket
    tokenizer: PreTrainedTokenizerBase
    submitted: float
    most: int  # tokens that the answer may have
    stretch: int = 0  # how RoPE is scaled for the next token (`long_context`)
    choices: int = 0  # tokens that may be chosen with it
    said: int = 0  # tokens of the answer before the first of these
    began: float = 0.0  # when it left the queue
    prefilled: float = 0.0  # when its prefix was there
    first: float = 0.0  # when its first token came
    entry: PrefixEntry | None = None
    shared: bool = False  # whether another request had prefilled its prefix
    tokens: list[int] = dataclasses.field(default_factory=list)
    shown: int = 0  # characters that have been sent

    @property
    def needed(self) -> int:
        """Tokens that its slot must hold."""
        return len(self.ticket.request.prompt.question) + self.most

    @property
    def key(self) -> str:
        """Of its prefix; RoPE is part of what that holds."""
        return f"{self.ticket.request.prefix_key} {self.stretch}"

    @property
    def text(self) -> tuple[int, ...]:
        """The tokens after its prefix: the question, and the answer so far."""
        return (*self.ticket.request.prompt.question, *self.tokens)

    @property
    def left(self) -> int:
        """Tokens that may be chosen before RoPE is scaled otherwise."""
        return min(self.most - self.said, self.choices)

    @property
    def crosses(self) -> bool:
        """Whether its next token needs its prefix with RoPE scaled otherwise."""
        return len(self.tokens) - self.said >= self.choices and len(self.tokens) < self.most

    def begin(self, config: ModelConfig) -> None:
        """Decides how RoPE is scaled for the next tokens."""
        length = self.ticket.request.prompt.prefix_tokens + len(self.text)
        self.stretch, self.said = stretch_of(config, length), len(self.tokens)
        self.choices = longest_of(config, self.stretch) - length + 1

    def add(self, tokens: Sequence[int], *, alive: bool, ended: bool) -> bool:
        """Takes new tokens and sends what is new of the text; returns whether that was the end.

        Where the answer crosses a length for which RoPE is scaled otherwise, it is not.
        """
        self.first = self.first or time.perf_counter()
        self.tokens += tokens
        # What was chosen beyond the last choice was chosen with the wrong RoPE.
        ended = ended and len(self.tokens) - self.said < self.choices
        alive = alive or (self.crosses and not ended)
        request = self.ticket.request
        stop, text, stopped = request.sampling.stop, None, False
        if stop or (request.stream and alive):
            text, stopped = visible(self.tokenizer, self.tokens, stop, final=not alive)
        if alive and not stopped:
            if text is not None:
                self._send(text)
            return False
        if stopped:
            self.tokens = self.tokens[: tokens_before(self.tokenizer, self.tokens, stop)]
        self.finish("stop" if stopped or ended else "length", text=text)
        return True

    def finish(self, reason: FinishReason, *, error: str = "", text: str | None = None) -> None:
        """Sends the rest of the text and `Done`."""
        if text is None:
            text, _ = visible(self.tokenizer, self.tokens, self.ticket.request.sampling.stop)
        self._send(text)
        prompt, entry = self.ticket.request.prompt, self.entry
        self.ticket.emit(
            Done(
                finish_reason=reason,
                answer=Answer(text=text, tokens=tuple(self.tokens), finished=reason == "stop"),
                error=error,
                prompt_tokens=prompt.tokens,
                completion_tokens=len(self.tokens),
                merged_tokens=entry.tokens if entry else (),
                shared_prefix=self.shared,
                seconds=self._seconds(),
            )
        )

    def _send(self, text: str) -> None:
        if self.ticket.request.stream and len(text) > self.shown:
            self.ticket.emit(Delta(text=text[self.shown :], tokens=len(self.tokens)))
            self.shown = len(text)

    def _seconds(self) -> Seconds:
        now = time.perf_counter()
        # A request that ends early has no time in the stages that it did not reach.
        began = self.began or now
        prefilled = max(self.prefilled or now, began)
        first = max(self.first or now, prefilled)
        return Seconds(
            queue=began - self.submitted,
            prefill=prefilled - began,
            feed=first - prefilled,
            decode=now - first,
            first_token=self.first and self.first - self.submitted,
            total=now - self.submitted,
        )
