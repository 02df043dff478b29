"""Whether two models are the same: both sides run on the same text and video, in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from elva_jax.errors import ConvertError
from elva_jax.evaluation import compare_sides
from elva_jax.evaluation.compare_sides import Answered
from elva_jax.video.read import read_frames

PROMPT = "What happens in this video, and in which order?"


class Report(NamedTuple):
    """How far two sides are from each other."""

    lines: tuple[str, ...]
    same: bool  # within the tolerance, in everything


def check(
    a: str | Path,
    b: str | Path,
    *,
    video: Any = None,
    prompt: str = PROMPT,
    tolerance: float = 1e-4,
    new_tokens: int = 64,
    merging: bool = True,
    trust_remote_code: bool = False,
) -> Report:
    """Compares two models.

    Two ELVAs answer `prompt` about `video`; where one side is a plain language model, both read `prompt` as bare text; two vision towers
    look at frames of `video`.

    Args:
      a, b: each a run, a converted checkpoint, or a Hugging Face folder.
      video: a path, or frames uint8 [H, W, 3]; None: a few frames made up here.
      prompt: the question.
      tolerance: largest absolute difference that counts as the same.
      new_tokens: length of the greedy answers.
      merging: whether the merging layers act.
      trust_remote_code: whether a folder may run Python files other than those that `elva convert export` writes.

    Raises:
      ConvertError: sides that cannot be compared, or cannot be loaded.
      VideoError: a video that cannot be read.
    """
    specs = [compare_sides.describe(path, trust_remote_code) for path in (a, b)]
    kinds = {spec.kind for spec in specs}
    if video is None:
        video = made_up_frames()
    elif isinstance(video, (str, Path)):
        read_frames(
            video, num_frames=1
        )  # a file that cannot be read is told in our words, before a model is loaded
    if kinds == {"vision"}:
        return _compare_features([spec.features(video) for spec in specs], tolerance)
    if "vision" in kinds:
        raise ConvertError(
            f"{a} and {b}: one is a vision tower, the other is not; compare like with like"
        )
    if kinds == {"elva"}:
        return compare(*(spec.ask(video, prompt, merging, new_tokens) for spec in specs), tolerance)
    vocabulary = min(spec.vocabulary for spec in specs)
    return compare(*(_read(spec, prompt, vocabulary, new_tokens) for spec in specs), tolerance)


def _read(spec: Any, prompt: str, vocabulary: int, new_tokens: int) -> Answered:
    """Bare text, and its greedy continuation without a cache."""
    with spec.reader() as reader:
        ids = tuple(reader.encode(prompt))
        logits = reader.logits(ids)[:, :vocabulary]
        tokens = greedy(lambda so_far: reader.logits(so_far)[-1, :vocabulary], ids, new_tokens)
    return Answered(ids, np.arange(len(ids)), logits, tokens, len(ids))


def greedy(
    next_logits: Callable[[Sequence[int]], np.ndarray], ids: Sequence[int], count: int
) -> tuple[int, ...]:
    """The likeliest continuation, without end: [V] logits of the next token, again and again."""
    ids, start = list(ids), len(ids)
    for _ in range(count):
        ids.append(int(next_logits(ids).argmax()))
    return tuple(ids[start:])


def compare(a: Answered, b: Answered, tolerance: float) -> Report:
    """Prompt tokens, surviving tokens, logits of those that survive on both sides, and greedy answers."""
    lines, same = [], True

    def note(text: str, fine: bool) -> None:
        nonlocal same
        lines.append(text if fine else f"{text}  <-- beyond")
        same = same and fine

    equal = a.ids == b.ids
    note(f"prompt tokens: {a.length}" + ("" if equal else f" and {b.length}, not the same"), equal)
    common, at_a, at_b = np.intersect1d(a.index, b.index, return_indices=True)
    equal = len(common) == len(a.index) == len(b.index)
    note(
        f"surviving tokens: {len(a.index)} of {a.length}"
        + ("" if equal else f" and {len(b.index)}, {len(common)} shared"),
        equal,
    )
    if len(common):
        width = min(a.logits.shape[1], b.logits.shape[1])
        logits_a, logits_b = (
            a.logits[at_a, :width].astype(np.float64),
            b.logits[at_b, :width].astype(np.float64),
        )
        largest = float(np.abs(logits_a - logits_b).max())
        note(
            f"largest logit difference: {largest:.2e} (tolerance {tolerance:.0e})",
            largest <= tolerance,
        )
        divergence = kl(logits_a, logits_b)
        lines.append(
            f"KL divergence: mean {divergence.mean():.2e}, largest {divergence.max():.2e} nats"
        )
    agree = next(
        (i for i, (x, y) in enumerate(zip(a.tokens, b.tokens, strict=False)) if x != y),
        min(len(a.tokens), len(b.tokens)),
    )
    longest = max(len(a.tokens), len(b.tokens))
    note(f"greedy tokens: the first {agree} of {longest} agree", agree == longest)
    return Report(tuple(lines), same)


def kl(logits_a: np.ndarray, logits_b: np.ndarray) -> np.ndarray:
    """KL(a || b) in nats of next-token distributions [C, V]; float64 [C]."""

    def log_softmax(x):
        x = x - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    log_a, log_b = log_softmax(logits_a), log_softmax(logits_b)
    return (np.exp(log_a) * (log_a - log_b)).sum(-1)


def _compare_features(features: Sequence[dict[str, np.ndarray]], tolerance: float) -> Report:
    """Features of the same names, such as penultimate [n, GG, C]."""
    a, b = features
    lines, same = [], True
    for name in a.keys() & b.keys():
        if a[name].shape != b[name].shape:
            raise ConvertError(
                f"{name} features have shapes {list(a[name].shape)} and {list(b[name].shape)}: these are different towers"
            )
        largest = float(np.abs(a[name] - b[name]).max())
        fine = largest <= tolerance
        lines.append(
            f"largest difference of {name} features: {largest:.2e} (tolerance {tolerance:.0e})"
            + ("" if fine else "  <-- beyond")
        )
        same = same and fine
    return Report(tuple(sorted(lines)), same)


def made_up_frames(count: int = 8, height: int = 120, width: int = 160) -> list[np.ndarray]:
    """A square that moves over noise that stays: some tokens merge, some do not."""
    background = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    frames = [background.copy() for _ in range(count)]
    for t, frame in enumerate(frames):
        left = t * (width - 40) // max(count - 1, 1)
        frame[40:80, left : left + 40] = (255, 200, 20 * t)
    return frames
