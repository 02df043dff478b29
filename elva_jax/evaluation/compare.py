"""Whether two models are the same: both run on the same text and video, in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from elva_jax.checkpoints.restore import open_run
from elva_jax.data.chat_tokens import may_fit
from elva_jax.errors import CheckpointError, ConvertError
from elva_jax.evaluation.jax_side import JaxSide
from elva_jax.evaluation.side import Answered, Side
from elva_jax.hf.foreign_code import refuse_foreign_code
from elva_jax.hf.tensor_store import refuse_adapter
from elva_jax.utils.read import read_json
from elva_jax.video.read import read_frames

PROMPT = "What happens in this video, and in which order?"
MOST_TOKENS = 8192  # of a prompt, which two models read whole and without a cache
HF_KINDS = {
    "elva": "elva",
    "qwen2": "text",
    "llama": "text",
    "siglip": "vision",
    "siglip_vision_model": "vision",
}


@dataclass(frozen=True, kw_only=True)
class Report:
    """How far two models differ."""

    lines: tuple[str, ...]
    same: bool  # whether everything is within the tolerance


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

    Two ELVAs answer `prompt` about `video`. If one side is a plain language model, both read
    `prompt` as bare text. Two vision towers look at frames of `video`.

    Args:
      a: a run, a converted checkpoint, or a Hugging Face folder.
      b: another one.
      video: a path, or frames uint8 [H, W, 3]; None: a few synthetic frames.
      prompt: the question.
      tolerance: largest absolute difference that counts as the same.
      new_tokens: length of the greedy answers.
      merging: whether the merging layers act.
      trust_remote_code: whether a folder may run Python files other than those that
        `elva convert export` writes.

    Raises:
      ConvertError: models that cannot be compared or loaded, or a prompt that is far too long.
      VideoError: a video that cannot be read.
    """
    if not may_fit(MOST_TOKENS, prompt):
        raise ConvertError(f"the prompt has {len(prompt):,} characters; compare with a shorter one")
    sides = [open_side(path, trust_remote_code=trust_remote_code) for path in (a, b)]
    kinds = {side.kind for side in sides}
    if video is None:
        video = synthetic_frames()
    elif isinstance(video, (str, Path)):
        read_frames(video, num_frames=1)  # an unreadable file fails before a model is loaded
    if kinds == {"vision"}:
        return _compare_features([side.features(video) for side in sides], tolerance)
    if "vision" in kinds:
        raise ConvertError(
            f"{a} and {b}: one is a vision tower, the other is not; compare two of a kind"
        )
    if kinds == {"elva"}:
        answers = [side.ask(video, prompt, new_tokens, merging=merging) for side in sides]
    else:
        vocab_size = min(side.vocab_size for side in sides)
        answers = [_continue_text(side, prompt, vocab_size, new_tokens) for side in sides]
    return compare(*answers, tolerance=tolerance)


def open_side(path: str | Path, *, trust_remote_code: bool = False) -> Side:
    """The side of a run or folder; no weights are loaded yet.

    Raises:
      ConvertError: a folder of an unknown kind, or one with Python files of its own.
    """
    path = Path(path)
    refuse_adapter(path)
    file = path / "config.json"  # of a folder or of a run
    config = read_json(file, ConvertError) if file.exists() else {}
    if "model_type" not in config:
        try:
            return JaxSide(open_run(path))
        except CheckpointError:
            return JaxSide(open_run(path, kind="teacher"))
    kind = HF_KINDS.get(str(config["model_type"]))
    if kind is None:
        raise ConvertError(
            f"{path}: a model of type {config['model_type']} cannot be checked; known are"
            f" {', '.join(HF_KINDS)}"
        )
    if not trust_remote_code:
        refuse_foreign_code(path)
    # PyTorch is optional: only Hugging Face folders need it.
    from elva_jax.evaluation.torch_side import TorchSide  # noqa: PLC0415

    return TorchSide(path, config, kind)


def _continue_text(side: Side, prompt: str, vocab_size: int, new_tokens: int) -> Answered:
    """Bare text and its greedy continuation, without a cache."""
    model = side.text_model()
    ids = tuple(model.encode(prompt))
    logits = model.logits(ids)[:, :vocab_size]
    tokens = greedy(lambda so_far: model.logits(so_far)[-1, :vocab_size], ids, new_tokens)
    index = np.arange(len(ids))
    return Answered(ids=ids, index=index, logits=logits, tokens=tokens, length=len(ids))


def greedy(
    next_logits: Callable[[Sequence[int]], np.ndarray], ids: Sequence[int], count: int
) -> tuple[int, ...]:
    """The `count` likeliest next tokens, given a function from ids to logits [V]; none ends it."""
    ids, start = list(ids), len(ids)
    for _ in range(count):
        ids.append(int(next_logits(ids).argmax()))
    return tuple(ids[start:])


def compare(a: Answered, b: Answered, *, tolerance: float) -> Report:
    """Compares prompt and surviving tokens, logits of common survivors, answers and pixels."""
    lines: list[tuple[str, bool]] = []
    equal = a.ids == b.ids
    other = "" if equal else f" and {b.length}, not the same"
    lines.append((f"prompt tokens: {a.length}{other}", equal))
    common, at_a, at_b = np.intersect1d(a.index, b.index, return_indices=True)
    equal = len(common) == len(a.index) == len(b.index)
    other = "" if equal else f" and {len(b.index)}, {len(common)} shared"
    lines.append((f"surviving tokens: {len(a.index)} of {a.length}{other}", equal))
    if len(common):
        width = min(a.logits.shape[1], b.logits.shape[1])
        logits_a = a.logits[at_a, :width].astype(np.float64)
        logits_b = b.logits[at_b, :width].astype(np.float64)
        largest = float(np.abs(logits_a - logits_b).max())
        text = f"largest logit difference: {largest:.2e} (tolerance {tolerance:.0e})"
        lines.append((text, largest <= tolerance))
        nats = kl(logits_a, logits_b)
        text = f"KL divergence: mean {nats.mean():.2e}, largest {nats.max():.2e} nats"
        lines.append((text, True))
    longest = max(len(a.tokens), len(b.tokens))
    pairs = zip(a.tokens, b.tokens, strict=False)
    differ = (i for i, (x, y) in enumerate(pairs) if x != y)
    agree = next(differ, min(len(a.tokens), len(b.tokens)))
    lines.append((f"greedy tokens: the first {agree} of {longest} agree", agree == longest))
    if a.patches is not None and b.patches is not None:
        lines.append(_compare_patches(a.patches, b.patches))
    return _report(lines)


def _compare_patches(a: np.ndarray, b: np.ndarray) -> tuple[str, bool]:
    """A line about the pixels that two sides read, and whether they are the same."""
    if a.shape != b.shape:
        return f"patches read: {list(a.shape)} and {list(b.shape)}, not the same", False
    largest = int(np.abs(a.astype(np.int16) - b.astype(np.int16)).max(initial=0))
    return f"patches read: {len(a)}, largest difference {largest} of 255", largest <= 1


def kl(logits_a: np.ndarray, logits_b: np.ndarray) -> np.ndarray:
    """KL(a || b) = sum over v of a(v) (log a(v) - log b(v)), in nats.

    Args:
      logits_a: float64 [C, V], logits of next-token distributions.
      logits_b: likewise.

    Returns:
      float64 [C].
    """

    def log_softmax(x: np.ndarray) -> np.ndarray:
        x = x - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    log_a, log_b = log_softmax(logits_a), log_softmax(logits_b)
    return (np.exp(log_a) * (log_a - log_b)).sum(-1)


def _compare_features(features: Sequence[dict[str, np.ndarray]], tolerance: float) -> Report:
    """Compares features with the same names, such as penultimate [n, GG, C]."""
    a, b = features
    lines = []
    for name in sorted(a.keys() & b.keys()):
        if a[name].shape != b[name].shape:
            raise ConvertError(
                f"{name} features have shapes {list(a[name].shape)} and {list(b[name].shape)}:"
                " these are different towers"
            )
        largest = float(np.abs(a[name] - b[name]).max())
        text = f"largest difference of {name} features: {largest:.2e} (tolerance {tolerance:.0e})"
        lines.append((text, largest <= tolerance))
    return _report(lines)


def _report(lines: Sequence[tuple[str, bool]]) -> Report:
    """Marks each line that is beyond the tolerance."""
    marked = tuple(text if fine else f"{text}  <-- beyond" for text, fine in lines)
    return Report(lines=marked, same=all(fine for _, fine in lines))


def synthetic_frames(count: int = 8, height: int = 120, width: int = 160) -> list[np.ndarray]:
    """A square that moves over static noise, so that some tokens merge and some do not."""
    background = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    frames = [background.copy() for _ in range(count)]
    for t, frame in enumerate(frames):
        left = t * (width - 40) // max(count - 1, 1)
        frame[40:80, left : left + 40] = (255, 200, 20 * t)
    return frames
