"""How the questions of a benchmark are asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from elva_jax.errors import ConfigError
from elva_jax.evaluation.benchmarks.base import Benchmark, Question
from elva_jax.evaluation.judge.config import JudgeConfig
from elva_jax.inference.quantization import Scheme
from elva_jax.utils import numbers

Way = Literal["generated", "likelihood", "letter"]
WAYS: tuple[Way, ...] = get_args(Way)
DEFAULT_WAYS: Mapping[str, tuple[Way, ...]] = {
    "choice": WAYS,
    "yes_no": ("generated", "likelihood"),
    "open": ("generated",),
}


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """How the questions of benchmarks are asked.

    Attributes:
      answers: ways of answering: "generated" (written, and parsed by the benchmark), "likelihood"
        (of the options' texts after the bare question) and "letter" (of the options' letters after
        the prompt that lists them). None: all three where there is a choice of options, the first
        two for yes and no, and the first one for open questions.
      num_frames: frames sampled from a video that does not say how many; None: as in the run's last
        stage.
      hybrid: fields of `Hybrid`, for frames of two resolutions instead; missing fields are
        completed by `video.hybrid.complete`.
      merging: whether the model's merging layers act.
      max_new_tokens: length of a written answer; None: the benchmark's.
      limit: number of questions of each benchmark, from the first; None: all.
      batch_size: most questions that are asked together.
      workers: threads that read media ahead; None: one per core, at most 16.
      judge: the judge of open answers; None: exact match and token F1.
      weights: int8 or int4: the model's matrices are quantized, as by `elva_jax.load`; None: as the
        model has them.
      prefill_chunk: tokens of a prompt that prefill takes at a time, as in `elva_jax.load`.
      follow_links: whether files of a benchmark's folder may be links that lead out of it.

    Example:
      >>> import elva_jax
      >>> elva_jax.BenchmarkConfig(answers=("letter",), num_frames=8).batch_size
      32
    """

    answers: Sequence[str] | None = None
    num_frames: int | None = None
    hybrid: Mapping[str, int | str] = field(default_factory=dict)
    merging: bool = True
    max_new_tokens: int | None = None
    limit: int | None = None
    batch_size: int = 32
    workers: int | None = None
    judge: JudgeConfig | None = None
    weights: Scheme | None = None
    prefill_chunk: int | None = None
    follow_links: bool = False

    def __post_init__(self) -> None:
        """Refuses impossible values."""
        numbers.check_fields(self, numbers.ASKING | {"workers": numbers.WORKERS})
        if self.answers is not None:
            check_ways(self.answers)


def check_ways(names: Sequence[str]) -> tuple[Way, ...]:
    """The ways of answering by name, in the order of `WAYS`.

    Raises:
      ConfigError: none, or an unknown one.
    """
    if unknown := [name for name in names if name not in WAYS]:
        raise ConfigError(f"answers: '{unknown[0][:40]}' is unknown; use {', '.join(WAYS)}")
    if not names:
        raise ConfigError(f"answers: give at least one of {', '.join(WAYS)}")
    return tuple(way for way in WAYS if way in names)


def ways_of(
    config: BenchmarkConfig, benchmark: Benchmark, questions: Sequence[Question]
) -> tuple[Way, ...]:
    """The ways in which a benchmark is asked.

    Returns:
      The ways; () where only ways that need options are wanted, and the benchmark has none.
    """
    wanted = DEFAULT_WAYS[benchmark.kind] if config.answers is None else check_ways(config.answers)
    if any(question.options for question in questions):
        return wanted
    return ("generated",) if "generated" in wanted else ()
