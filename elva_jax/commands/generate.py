"""The sub-commands that answer: `elva generate` and `elva chat`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import elva_jax
from elva_jax.commands import flags, generate_file, many
from elva_jax.errors import DataError, LayoutError, printable
from elva_jax.utils import garbage
from elva_jax.utils.json import jsonable

if TYPE_CHECKING:  # their modules import JAX
    from jax.sharding import Mesh

    from elva_jax.inference.media import Prompt
    from elva_jax.inference.prefilled import Prefilled
    from elva_jax.inference.trace import Trace
    from elva_jax.video.clip import Visual

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
  elva generate --checkpoint runs/7b --video film.mp4 --prompt "What happens?" \\
    --merging-profile half=merge_ratios=0.5 --merging half
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """The model, how its videos are sampled, how tokens are chosen, and what --json says of it."""

    model: elva_jax.ElvaModel
    frames: int | elva_jax.Hybrid | None
    sampling: elva_jax.Sampling
    facts: dict[str, Any]


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
    flags.add_merging_profiles(add)
    flags.add_frames(generate)
    flags.add_answering(generate, 64)
    _add_inspection(generate, "prompt")
    flags.add_mesh(generate)
    flags.add_one_mesh(generate)
    flags.add_weights(generate)
    flags.add_prefill_chunk(generate)
    generate_file.add_file(generate)

    chat = command("chat", CHAT_HELP, _chat)
    flags.add_checkpoint(chat)
    chat.add_argument("--video", action="append", default=[], metavar="FILE", help=MEDIUM)
    flags.add_merging_profiles(chat.add_argument)
    flags.add_frames(chat)
    flags.add_answering(chat, 512)
    _add_inspection(chat, "question")
    flags.add_mesh(chat)
    flags.add_weights(chat)
    flags.add_prefill_chunk(chat)


def _add_inspection(parser: argparse.ArgumentParser, asked: str) -> None:
    """Adds the options that show what an answer takes."""
    add = parser.add_argument_group("looking inside").add_argument
    text = f"print a JSON object per {asked}: answer, tokens around each merging layer, seconds of"
    text += " each stage, memory, media, seed and weights"
    add("--json", action="store_true", help=text)
    text = "draw which patches merged and how many each other one stands for: a film, or a sheet"
    add("--save-merge-map", type=_merge_map_file, metavar="FILE.mp4|png", help=text)
    text = "after the last merging layer, or all of them side by side (default: %(default)s)"
    add("--merge-map-layers", choices=("last", "all"), default="last", help=text)


def _merge_map_file(text: str) -> Path:
    from elva_jax.inference.draw_merges import check_path

    return check_path(text)


def _open(args: argparse.Namespace, mesh: Mesh | None) -> Opened:
    """Loads the model; with --json its weights are named, as in the results of evaluations."""
    with garbage.paused():
        sampling = flags.sampling(args)
        given = flags.hybrid_settings(args)
        named = flags.named_merging(args)
        if named and args.merging is True:
            args.parser.error("--merging-profile: choose one with --merging NAME")
        model, facts = _load(args, mesh)
        model.add_merging_profiles(*named)
    frames = model.hybrid(**given) if given else args.frames
    return Opened(model=model, frames=frames, sampling=sampling, facts=facts)


def _load(args: argparse.Namespace, mesh: Mesh | None) -> tuple[elva_jax.ElvaModel, dict[str, Any]]:
    """The model, and with --json what tells it and this program from others."""
    if not args.json:
        model = elva_jax.load(
            args.checkpoint, mesh=mesh, weights=args.weights, prefill_chunk=args.prefill_chunk
        )
        return model, {}
    import jax

    from elva_jax.evaluation.models import open_elva

    model, origin = open_elva(args.checkpoint, mesh, args.weights, args.prefill_chunk)
    versions = {
        "elva_jax": elva_jax.__version__,
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    return model, {"model": {"stage": model.stage, **origin}, "versions": versions}


def _show(pieces: Iterable[str]) -> None:
    """Prints an answer as it comes."""
    for piece in pieces:  # a model must not rule the terminal either
        print(printable(piece) if sys.stdout.isatty() else piece, end="", flush=True)
    print()


def _print_trace(args: argparse.Namespace, opened: Opened, prompt: str, trace: Trace) -> None:
    """Prints a line of JSON, which holds no character that rules a terminal."""
    found = trace.to_dict()
    named = zip(args.video, found["media"], strict=True)
    found["media"] = [{"source": source, **medium} for source, medium in named]
    print(json.dumps(jsonable({"prompt": prompt, **found, **opened.facts})), flush=True)


def _save_merge_map(
    args: argparse.Namespace, opened: Opened, media: Sequence[Visual], prompt: Prompt = "?"
) -> None:
    if args.save_merge_map:
        merges = opened.model.merge_map(media, prompt, merging=args.merging)
        if opened.model.engine.placement.lockstep.first:
            merges.save(args.save_merge_map, args.merge_map_layers)


@flags.library_notices()
def _generate(args: argparse.Namespace, _: list[str]) -> int:
    generate_file.check(args)
    if args.input:
        return generate_file.run(args)
    _check_alone(args)
    many.join_mesh(args, "--input")
    elva_jax.enable_compilation_cache()
    mesh = flags.open_mesh(args)
    with many.together(mesh):
        _answer(args, _open(args, mesh))
    return 0


def _answer(args: argparse.Namespace, opened: Opened) -> None:
    """Answers the prompts."""
    from elva_jax.video.layout import part_tokens

    model, sampling = opened.model, opened.sampling
    with _measured(args) as shared:
        media = [model.read_media(video, frames=opened.frames) for video in args.video]
    placed = [model.place_media(text) for text in args.prompt]
    prompts = placed if args.markers else args.prompt
    if not args.markers and any(len(found) > 1 for found in placed):
        print("<video> in a prompt is text; --markers makes it a place", file=sys.stderr)
    lengths = [sum(map(part_tokens, model.prompt_parts(text, ()))) for text in args.prompt]
    longest = prompts[lengths.index(max(lengths))]
    _save_merge_map(args, opened, media, longest)
    with _measured(args) as before:
        prefilled = model.prefill([media], prompts=[longest], merging=args.merging)
    if args.json:
        _trace_each(args, opened, prefilled, prompts, _sum(shared, before))
        return
    if len(prompts) == 1:
        _show(prefilled.stream(prompts[0], args.max_new_tokens, sampling=sampling))
        return
    (answers,) = prefilled.generate([prompts], args.max_new_tokens, sampling=sampling)
    for answer in answers:
        print(printable(answer.text) if sys.stdout.isatty() else answer.text)


def _trace_each(
    args: argparse.Namespace,
    opened: Opened,
    prefilled: Prefilled,
    prompts: Sequence[Prompt],
    shared: Mapping[str, float],
) -> None:
    """Answers one prompt after another; all have the seconds that they share."""
    from elva_jax.inference.trace import prompt_tokens, trace_of

    for text, prompt in zip(args.prompt, prompts, strict=True):
        with _measured(args) as own:
            ((answer,),) = prefilled.generate(
                [[prompt]], args.max_new_tokens, sampling=opened.sampling
            )
        count, seconds = prompt_tokens(prefilled, prompt), _sum(shared, own)
        trace = trace_of(prefilled, answer, count, seconds, opened.sampling)
        _print_trace(args, opened, text, trace)


def _measured(args: argparse.Namespace) -> contextlib.AbstractContextManager[dict[str, float]]:
    """Measures stages for --json."""
    from elva_jax.inference.stages import measured

    return measured() if args.json else contextlib.nullcontext({})


def _sum(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    return {name: seconds + second[name] for name, seconds in first.items()}


def _check_alone(args: argparse.Namespace) -> None:
    """Refuses options that would change nothing where no row of a file says otherwise."""
    if args.temperature == 0:
        flags.refuse(args, ("top_p", "seed"), "counts where tokens are drawn: give --temperature")
    if args.save_merge_map is None:
        flags.refuse(args, ["merge_map_layers"], "needs --save-merge-map")


@flags.library_notices()
def _chat(args: argparse.Namespace, _: list[str]) -> int:
    _check_alone(args)
    if not args.video:
        names = ("frames", "high_frames", "low_frames", "high_edge", "low_edge", "save_merge_map")
        flags.refuse(args, names, "needs --video")
    elva_jax.enable_compilation_cache()
    opened = _open(args, flags.open_mesh(args))
    with _measured(args) as read:
        media = [opened.model.read_media(video, frames=opened.frames) for video in args.video]
    _save_merge_map(args, opened, media)
    chat = opened.model.chat(
        media,
        max_new_tokens=args.max_new_tokens,
        merging=args.merging,
        frames=opened.frames,
        sampling=opened.sampling,
    )
    for question in _lines():
        try:
            if args.json:
                trace = chat.trace(question)
                trace = dataclasses.replace(trace, seconds=_sum(trace.seconds, read))
                read = dict.fromkeys(read, 0.0)  # by the first question
                _print_trace(args, opened, question, trace)
                continue
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
