"""`elva compile`: compiles what answers need, so that later starts find it on disk."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import elva_jax
from elva_jax.commands import flags
from elva_jax.utils import garbage, numbers

if TYPE_CHECKING:
    import numpy as np

    from elva_jax.inference.model import ElvaModel
    from elva_jax.video.clip import Source

HELP = """\
Compiles the programs that answers need, and stores them on disk: JAX_COMPILATION_CACHE_DIR, or
elva_jax/programs in the cache folder of the user. Later starts of every command load them.

examples:
  elva compile --checkpoint runs/7b --video film.mp4 --video clip.mp4
  elva compile --checkpoint runs/7b --frames 64 --picture-size 1920x1080 --question-tokens 16:64

Programs depend on the lengths of prompts, questions and answers, and on how many tokens merging
leaves. So give videos like those that will be asked about, and the options that `elva generate`
will get. Without --video three made ones stand for them: nothing moves, half of the picture
changes, all of it changes."""
WORD = " what"
QUESTION = numbers.whole(1, 4096)  # tokens


def register(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command with `command(name, text, run)`, which makes a sub-command of `elva`."""
    parser = command("compile", HELP, _compile)
    flags.add_checkpoint(parser)
    add = parser.add_argument
    text = "a video like those that will be asked about; may be given several times"
    add("--video", action="append", default=[], metavar="FILE", help=text)
    text = "width and height of the made videos (default: %(default)s)"
    add("--picture-size", type=_size, default="1280x720", metavar="WxH", help=text)
    text = "shortest and longest question, in tokens with what the chat template adds"
    text += " (default: %(default)s)"
    add("--question-tokens", type=_lengths, default="12:32", metavar="A:B", help=text)
    flags.add_frames(parser)
    text = "longest answer (default: %(default)s)"
    add("--max-new-tokens", type=numbers.TOKENS, default=64, metavar="N", help=text)
    flags.add_no_merging(parser)
    flags.add_mesh(parser)
    flags.add_weights(parser)
    flags.add_prefill_chunk(parser)


def _size(text: str) -> tuple[int, int]:
    """WxH in pixels; for `type=` of an option."""
    parts = text.split("x")
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"'{text[:40]}' is not WxH, such as 1280x720")
    return numbers.EDGE(parts[0]), numbers.EDGE(parts[1])


def _lengths(text: str) -> tuple[int, int]:
    """A:B in tokens; for `type=` of an option."""
    first, last = flags.span(text)
    return first, QUESTION(str(last))


@flags.library_notices()
def _compile(args: argparse.Namespace, _: list[str]) -> int:
    from elva_jax.utils.compilation_cache import ProgramCount

    with garbage.paused():
        given = flags.hybrid_settings(args)
        if given and not args.video:
            args.parser.error(
                "hybrid resolution needs a --video like those that will be asked about"
            )
        elva_jax.enable_compilation_cache()
        model = elva_jax.load(
            args.checkpoint,
            mesh=flags.open_mesh(args),
            weights=args.weights,
            prefill_chunk=args.prefill_chunk,
        )
    frames = model.hybrid(**given) if given else args.frames
    for name, source in _videos(args, model):
        start = time.monotonic()
        with ProgramCount() as programs:
            media = [[model.read_media(source, frames=frames)]]
            prefilled = model.prefill(media, merging=args.merging)
            for question in _questions(model, *args.question_tokens):
                prefilled.generate([[question]], args.max_new_tokens)
        print(
            f"{name}: {programs.compiled} programs compiled, {programs.loaded} loaded,"
            f" {time.monotonic() - start:.1f} s",
            flush=True,
        )
    return 0


def _videos(args: argparse.Namespace, model: ElvaModel) -> Iterator[tuple[str, Source]]:
    """Names and sources: the given videos, or else made ones."""
    yield from ((path, path) for path in args.video)
    if not args.video:
        count = args.frames or model.data.num_frames
        for share in (0.0, 0.5, 1.0):
            yield f"{share:.0%} of the picture changes", _made(count, args.picture_size, share)


def _made(frames: int, size: tuple[int, int], share: float) -> list[np.ndarray]:
    """Frames of noise, uint8 [height, width, 3], that differ in the left `share` of the width."""
    import numpy as np

    rng, (width, height) = np.random.default_rng(0), size
    still = rng.integers(0, 256, (height, width, 3), np.uint8)
    changed = round(share * width)
    video = [still.copy() for _ in range(frames)]
    for frame in video:
        frame[:, :changed] = rng.integers(0, 256, (height, changed, 3), np.uint8)
    return video


def _questions(model: ElvaModel, shortest: int, longest: int) -> Iterator[str]:
    """A question for each padded length from that of `shortest` to that of `longest` tokens."""
    from elva_jax.inference.batching import grid_length, split_prompt

    seen: set[int] = set()
    for words in range(1, longest + 1):
        question = (WORD * words).strip()
        tokens = len(split_prompt(model.prompt_parts(question, ())).question)
        if tokens > longest and seen:
            return
        length = grid_length(tokens)
        if tokens >= shortest and length not in seen:
            seen.add(length)
            yield question
