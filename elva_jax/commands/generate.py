"""The sub-commands that answer: `elva generate` and `elva chat`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator

import elva_jax
from elva_jax.commands import flags, generate_file
from elva_jax.errors import DataError, LayoutError, printable
from elva_jax.utils import garbage

GENERATE_HELP = (
    """\
Answers questions about videos, images or folders of frames.

examples:
  elva generate --checkpoint runs/tiny --video clip.mp4 --prompt "What color is the circle?"
  elva generate --checkpoint runs/tiny --video clip.mp4 --prompt "What moves?" --prompt "Where to?"
  elva generate --checkpoint runs/7b --video a.mp4 --video b.mp4 \\
    --markers --prompt "What differs between <video> and <video>?"
  elva generate --checkpoint runs/7b --video film.mp4 --prompt "What happens?" \\
    --high-frames 32 --low-frames 32 --low-edge 336
  elva generate --checkpoint runs/7b --input questions.jsonl --output answers.jsonl

Several prompts are answered independently, one line each, from one reading of the videos. The
answer to a single prompt is shown while it is decoded. A prompt is text, whatever it says, and the
videos stand before it; with --markers, <video> and <image> in a prompt say where they stand.
Any of the --high-… and --low-… options turns on hybrid resolution: frames of two sizes, sampled
uniformly in time.

"""
    + generate_file.HELP
)

CHAT_HELP = """\
Talks about a video. Questions are read from the terminal, one per line, until the input ends
(Ctrl-D); the conversation history is kept.

example:
  elva chat --checkpoint runs/7b --video film.mp4 --temperature 0.7 --top-p 0.9"""
LONGEST = 1_000_000  # characters of a question
MEDIUM = "a video, an image, or a folder of frames; may be given several times"


def register(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds both with `command(name, text, run)`, which makes a sub-command of `elva`."""
    generate = command("generate", GENERATE_HELP, _generate)
    flags.add_checkpoint(generate)
    add = generate.add_argument
    add("--video", action="append", metavar="FILE", help=MEDIUM)
    text = "the question; may be given several times"
    add("--prompt", action="append", metavar="TEXT", help=text)
    text = "<video> and <image> in the prompts are places of the videos (\\<video>: the word)"
    add("--markers", action="store_true", help=text)
    flags.add_frames(generate)
    flags.add_answering(generate, 64)
    flags.add_mesh(generate)
    flags.add_weights(generate)
    generate_file.add_file(generate)

    chat = command("chat", CHAT_HELP, _chat)
    flags.add_checkpoint(chat)
    chat.add_argument("--video", action="append", default=[], metavar="FILE", help=MEDIUM)
    flags.add_frames(chat)
    flags.add_answering(chat, 512)
    flags.add_mesh(chat)
    flags.add_weights(chat)


def _open(
    args: argparse.Namespace,
) -> tuple[elva_jax.ElvaModel, int | elva_jax.Hybrid | None, elva_jax.Sampling]:
    """The model, how its videos are sampled, and how tokens are chosen."""
    with garbage.paused():
        sampling = flags.sampling(args)
        given = flags.hybrid_settings(args)
        elva_jax.enable_compilation_cache()
        model = elva_jax.load(args.checkpoint, mesh=flags.open_mesh(args), weights=args.weights)
    return model, model.hybrid(**given) if given else args.frames, sampling


def _show(pieces: Iterable[str]) -> None:
    """Prints an answer as it comes."""
    for piece in pieces:  # a model must not rule the terminal either
        print(printable(piece) if sys.stdout.isatty() else piece, end="", flush=True)
    print()


@flags.library_notices()
def _generate(args: argparse.Namespace, _: list[str]) -> int:
    generate_file.check(args)
    if args.input:
        return generate_file.run(args)
    model, frames, sampling = _open(args)
    media = [model.read_media(video, frames=frames) for video in args.video]
    placed = [model.place_media(text) for text in args.prompt]
    prompts = placed if args.markers else args.prompt
    if not args.markers and any(len(found) > 1 for found in placed):
        print("<video> in a prompt is text; --markers makes it a place", file=sys.stderr)
    lengths = [len(model.tokenizer.encode(text)) for text in args.prompt]
    longest = prompts[lengths.index(max(lengths))]
    prefilled = model.prefill(
        [media], prompts=[longest], merging=args.merging, capacity=args.max_new_tokens
    )
    if len(prompts) == 1:
        _show(prefilled.stream(prompts[0], args.max_new_tokens, sampling=sampling))
        return 0
    (answers,) = prefilled.generate([prompts], args.max_new_tokens, sampling=sampling)
    for answer in answers:
        print(printable(answer.text) if sys.stdout.isatty() else answer.text)
    return 0


@flags.library_notices()
def _chat(args: argparse.Namespace, _: list[str]) -> int:
    model, frames, sampling = _open(args)
    chat = model.chat(
        args.video,
        max_new_tokens=args.max_new_tokens,
        merging=args.merging,
        frames=frames,
        sampling=sampling,
    )
    for question in _lines():
        try:
            _show(chat.stream(question))
        except (DataError, LayoutError) as error:  # of this question alone
            print(f"elva chat: {error}", file=sys.stderr)
    return 0


def _lines() -> Iterator[str]:
    """The lines that the user types, with a prompt where a terminal shows it."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        line = sys.stdin.readline(LONGEST + 2)  # and the end of the line
        if len(line.rstrip("\n")) > LONGEST:
            raise DataError(f"a question has more than {LONGEST:,} characters; ask a shorter one")
        if not line:
            return
        if line.strip():
            yield line.strip()
