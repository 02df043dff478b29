"""The classes that lmms-eval calls; the work is done in `adapter`."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.caching.response_cache import ResponseCache
from lmms_eval.models.model_utils.gen_metrics import log_metrics

from elva_jax.evaluation.lmms.adapter import Adapter
from elva_jax.evaluation.lmms.opened import open_options
from elva_jax.evaluation.lmms.options import parse_options
from elva_jax.evaluation.lmms.pipeline import Reply
from elva_jax.evaluation.lmms.ranks import choose_devices
from elva_jax.evaluation.lmms.response_cache import is_stored, key_by_weights
from elva_jax.utils.compilation_cache import enable_compilation_cache

_LOG = logging.getLogger(__name__)


class Pair(tuple[float, bool]):
    """A loss and whether the option is greedy, in the place of a text.

    lmms-eval turns a plain pair into a string, which breaks its tasks. Of a text it asks `strip`,
    and what is empty it does not store.
    """

    mended = False  # whether stored pairs come back as pairs

    def strip(self) -> str:
        """The empty text where the pair is not to be stored."""
        return str(self) if self.mended and is_stored(self) else ""


class Outputs(list[Any]):
    """The answers of several rounds, in the place of a text."""

    def strip(self) -> str:
        """The empty text where the answers are not to be stored."""
        return str(self) if is_stored(self) else ""


class _Elva(lmms):
    """An ELVA for lmms-eval; the keyword arguments are those of `--model_args`."""

    def __init__(self, **model_args: Any) -> None:
        super().__init__()
        options = parse_options(model_args)
        log_to_stderr()
        choose_devices(os.environ)
        enable_compilation_cache()
        opened = open_options(options)
        self.elva = Adapter(opened, options, self.task_dict, chat=not self.is_simple)
        # results.json has no other field that a model fills in: "model_backend" is its class.
        name = f"{type(self).__name__}@{opened.identity}"
        self.__class__ = type(name, (type(self),), {"__module__": type(self).__module__})
        _LOG.info(
            "%s: stage %s, step %d, weights %s",
            options.pretrained,
            opened.model.stage,
            opened.step,
            opened.weights,
        )
        Pair.mended = key_by_weights(ResponseCache, opened.identity, _pair)
        if not Pair.mended:
            _LOG.warning(
                "this version of lmms-eval keys --use_cache by the text of model_args alone; give"
                " step=%d,weights=%s there",
                opened.step,
                opened.weights,
            )

    @property
    def device(self) -> Any:
        """Where lmms-eval puts the numbers that ranks exchange."""
        accelerator = getattr(self, "accelerator", None)
        return accelerator.device if accelerator is not None else "cpu"

    def generate_until(self, requests: Sequence[Any]) -> Iterator[GenerationResult]:
        """Written answers, in order, each as soon as it is there."""
        return self._measured(self.elva.write(requests), _written)

    def loglikelihood(self, requests: Sequence[Any]) -> Iterator[GenerationResult]:
        """The loss of each option (lower is better) and whether it is what the model writes."""

        def scored(reply: Reply) -> GenerationResult:
            return _pair(self.elva.loss(reply), reply.greedy, _counts([reply]))

        return self._measured(self.elva.score(requests), scored)

    def generate_until_multi_round(self, requests: Sequence[Any]) -> Iterator[GenerationResult]:
        """The answers of all rounds of each request."""

        def outputs(rounds: Any) -> GenerationResult:
            return GenerationResult(Outputs(rounds.outputs), _counts(rounds.replies))

        return self._measured(self.elva.converse(requests), outputs)

    def _measured(
        self, replies: Iterator[Any], convert: Callable[[Any], GenerationResult]
    ) -> Iterator[GenerationResult]:
        """Converts replies, and reports their number, time and tokens at the end."""
        start, tokens, count, refused = time.monotonic(), 0, 0, self.elva.refused
        try:
            for reply in replies:
                result = convert(reply)
                tokens += result.token_counts.output_tokens or 0
                count += 1
                yield result
        finally:
            replies.close()  # type: ignore[attr-defined]  # a generator; counts what was refused
            seconds = time.monotonic() - start
            log_metrics(
                total_elapsed_time=seconds,
                total_gen_tokens=tokens,
                avg_speed=tokens / max(seconds, 1e-9),
                additional_metrics={
                    "requests": count,
                    "refused_requests": self.elva.refused - refused,
                },
            )


class ElvaSimple(_Elva):
    """The simple interface: media apart from a prompt, and likelihoods (`--force_simple`)."""

    is_simple = True


class ElvaChat(_Elva):
    """The chat interface: messages with media among the text."""

    is_simple = False


def log_to_stderr() -> None:
    """Shows notices of this package on standard error, where tables of lmms-eval do not go."""
    logger = logging.getLogger("elva_jax")
    if not any(isinstance(handler, logging.StreamHandler) for handler in logger.handlers):
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("elva: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


def _pair(
    loss: float,
    greedy: bool,  # noqa: FBT001
    counts: TokenCounts | None = None,
) -> GenerationResult:
    return GenerationResult(Pair((loss, greedy)), counts)


def _written(reply: Reply) -> GenerationResult:
    return GenerationResult(reply.text, _counts([reply]))


def _counts(replies: Sequence[Reply]) -> TokenCounts:
    return TokenCounts(
        input_tokens=sum(reply.input_tokens for reply in replies),
        output_tokens=sum(reply.output_tokens for reply in replies),
    )
