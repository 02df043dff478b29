"""Options that several sub-commands share."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import elva_jax
from elva_jax.errors import ConfigError
from elva_jax.utils import notices, numbers
from elva_jax.utils.numbers import shown
from elva_jax.utils.read import check_output, check_output_folder

if TYPE_CHECKING:  # imports JAX
    from jax.sharding import Mesh

    from elva_jax.config.merging_profiles import MergingProfile
    from elva_jax.parallel.launchers import ProcessSpec

PROCESS = ("coordinator", "num_processes", "process_id", "local_devices")


@contextlib.contextmanager
def library_notices() -> Iterator[None]:
    """Within it, all that the library logs goes to standard error, a line each."""
    with notices.shown(logging.INFO):
        yield


positive = numbers.whole(1)  # for `type=` of an option, as all of these
not_negative = numbers.whole(0)


def shard(text: str) -> tuple[int, int]:
    """I/N with 0 <= I < N; for `type=` of an option."""
    parts = text.split("/")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"must be I/N, such as 0/8, got {text[:40]}")
    index, count = not_negative(parts[0]), numbers.ROWS(parts[1])
    if index >= count:
        raise argparse.ArgumentTypeError(f"I counts from 0 to N-1, got {text}")
    return index, count


def output_file(option: str) -> Callable[[str], Path]:
    """The `type=` of an option that names a file to write: refused at once if it cannot be."""
    return lambda text: check_output(text, option)


def output_folder(option: str) -> Callable[[str], Path]:
    """The `type=` of an option that names a folder to write to."""
    return lambda text: check_output_folder(text, option)


def indices(text: str) -> tuple[int, ...]:
    """Whole numbers from 0, separated by commas; for `type=` of an option."""
    return tuple(not_negative(part) for part in text.split(","))


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Adds how several processes find one another; `find_process` reads it."""
    known = "Under srun, mpirun or a Job of Kubernetes most of this is known."
    add = parser.add_argument_group("several processes", known).add_argument
    text = "off: a process alone, whatever the launcher says (default: %(default)s)"
    add("--distributed", choices=("auto", "off"), default="auto", help=text)
    add("--coordinator", metavar="HOST:PORT", help="host of process 0, and a free port of it")
    add("--num-processes", type=numbers.ROWS, metavar="N", help="number of processes")
    add("--process-id", type=not_negative, metavar="I", help="number of this process, from 0")
    text = "GPUs of this process among those that it sees (default: all)"
    add("--local-devices", type=indices, metavar="I,J", help=text)
    text = "longest wait for the other processes at the start (default: %(default)s)"
    add("--start-timeout", type=positive, default=300, metavar="SECONDS", help=text)
    text = "silence after which a process counts as dead and the others end (default: %(default)s)"
    add("--heartbeat-timeout", type=positive, default=100, metavar="SECONDS", help=text)


def find_process(args: argparse.Namespace) -> ProcessSpec | None:
    """Which of several processes this is, by the options of `add_processes` and the launcher.

    Raises:
      ConfigError: they are impossible, or contradict one another.
    """
    from elva_jax.parallel import launchers

    if args.distributed == "off":
        refuse(args, PROCESS, "means nothing with --distributed off")
        return None
    given = {name: getattr(args, name) for name in PROCESS}
    return launchers.detect_process(os.environ, **given)


def refuse(args: argparse.Namespace, names: Iterable[str], why: str) -> None:
    """Refuses the options of these names that have been given, which would change nothing."""
    for name in names:
        value = getattr(args, name)
        if value != args.parser.get_default(name):
            no = "no-" if value is False else ""
            args.parser.error(f"--{no}{name.replace('_', '-')} {why}")


def span(text: str) -> tuple[int, int]:
    """Two whole numbers A:B with 1 <= A <= B; for `type=` of an option."""
    first, _, last = text.partition(":")
    wrong = f"'{text[:40]}' is not A:B with 1 <= A <= B, such as 10:15"
    if not all(part.isascii() and part.isdigit() for part in (first, last)):
        raise argparse.ArgumentTypeError(wrong)
    begin, end = positive(first), positive(last)
    if begin > end:
        raise argparse.ArgumentTypeError(wrong)
    return begin, end


def add_checkpoint(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds --checkpoint."""
    text = "a run's --workdir, one stage in it, one saved step, or an exported folder"
    parser.add_argument("--checkpoint", required=required, metavar="DIR", help=text)


def mesh_axes(text: str) -> dict[str, int]:
    """Axes of a mesh with their sizes, such as tensor=4,data=2; for `type=` of an option."""
    from elva_jax.config.mesh_axes import parse_axes

    try:
        return parse_axes(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_mesh(parser: argparse._ActionsContainer) -> None:
    """Adds --mesh; `open_mesh` reads it."""
    text = "devices of this process, such as tensor=4,data=2: weights are split over tensor and"
    text += " fsdp, rows of a batch over data and fsdp; -1 is all that are left (default: the first"
    text += " device)"
    parser.add_argument("--mesh", type=mesh_axes, metavar="AXIS=N,…", help=text)


def add_one_mesh(parser: argparse._ActionsContainer) -> None:
    """Adds --one-mesh; `many.meet` and `open_mesh` read it."""
    text = "--mesh has the devices of all processes, which ask every question together, as for a"
    text += " model that needs more devices than a host has; the first process writes (default: a"
    text += " mesh per process)"
    parser.add_argument("--one-mesh", action="store_true", help=text)


def open_mesh(args: argparse.Namespace) -> Mesh | None:
    """The mesh that --mesh asks for, over all devices that JAX knows here; None without one.

    Those are the devices of this process, or with --one-mesh of all that `many.meet` has joined.

    Raises:
      ConfigError: the axes do not multiply to the number of devices.
    """
    if not args.mesh:
        return None
    from elva_jax.config.mesh_axes import mesh_config
    from elva_jax.parallel.mesh import make_mesh

    return make_mesh(mesh_config(args.mesh), own_rows=False)


def add_weights(parser: argparse._ActionsContainer) -> None:
    """Adds --weights, which is the argument `weights` of `elva_jax.load`."""
    text = "quantize the decoder's matrices: a half or a third of bfloat16's memory; needs"
    text += ' pip install "elva_jax[quant]" (default: the compute type)'
    parser.add_argument("--weights", choices=("int8", "int4"), help=text)


def add_prefill_chunk(parser: argparse._ActionsContainer) -> None:
    """Adds --prefill-chunk, which is the argument `prefill_chunk` of `elva_jax.load`."""
    text = "tokens of a prompt that go through the model at a time, which bounds memory; 0: all"
    text += " (default: all of up to 16384, and 4096 of a longer prompt)"
    most = numbers.whole(0, numbers.MOST_TOKENS)
    parser.add_argument("--prefill-chunk", type=most, metavar="N", help=text)


def add_no_merging(parser: argparse._ActionsContainer) -> None:
    """Adds --no-merging."""
    text = "leave token merging off"
    parser.add_argument("--no-merging", dest="merging", action="store_false", help=text)


def merging_profile(text: str) -> MergingProfile:
    """NAME=KEY=VALUE;…, settings of merging by name; for `type=` of an option."""
    from elva_jax.config.merging_profiles import parse_profile

    try:
        return parse_profile(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_merging_profiles(add: Callable[..., Any]) -> None:
    """Adds --merging-profile, which a request or a row may name as `merging`."""
    text = "settings of merging that may be asked for by name: keys of the configuration's group"
    text += " model that begin with merge_, such as half=merge_ratios=0.5 or"
    text += " 'few=merge_thresholds=0.8;merge_ratios=0.3'; one value counts for all merging layers,"
    text += " (0.8, 0.6) for one each; may be given several times"
    name = "NAME=KEY=VALUE;…"
    add("--merging-profile", type=merging_profile, action="append", metavar=name, help=text)


def add_merging(parser: argparse.ArgumentParser) -> None:
    """Adds --no-merging, or --merging with the name of a --merging-profile."""
    either = parser.add_mutually_exclusive_group()
    add_no_merging(either)
    text = "merge as the --merging-profile of this name says (default: as the model does)"
    either.add_argument("--merging", default=True, metavar="NAME", help=text)


def named_merging(args: argparse.Namespace) -> tuple[MergingProfile, ...]:
    """The settings of --merging-profile, where --merging may choose one of them.

    Raises:
      ConfigError: as `merging_profiles`, or --merging names none of them.
    """
    found = merging_profiles(args)
    names = [profile.name for profile in found]
    if isinstance(args.merging, str) and args.merging not in names:
        listed = f"one of {', '.join(names)}" if names else "the NAME of a --merging-profile"
        raise ConfigError(f"--merging: must be {listed}, got {shown(args.merging)}")
    return found


def merging_profiles(args: argparse.Namespace) -> tuple[MergingProfile, ...]:
    """The profiles of --merging-profile.

    Raises:
      ConfigError: too many, or two of one name.
    """
    from elva_jax.config.merging_profiles import check_profiles

    found = tuple(args.merging_profile or ())
    check_profiles(found)
    return found


def add_frames(parser: argparse._ActionsContainer) -> None:
    """Adds how a video is sampled; `hybrid_settings` reads the fields of a `Hybrid`."""
    add = parser.add_argument
    text = "frames sampled from a video (default: as in the last stage)"
    add("--frames", type=numbers.FRAMES, metavar="N", help=text)
    text = "hybrid resolution: frames at high resolution (default: 32)"
    add("--high-frames", type=numbers.whole(0, numbers.MOST_FRAMES), metavar="N", help=text)
    text = "frames at low resolution beside them (default: 32)"
    add("--low-frames", type=numbers.whole(0, numbers.MOST_FRAMES), metavar="N", help=text)
    text = "longest edge of the high ones (default: as in the last stage)"
    add("--high-edge", type=numbers.EDGE, metavar="PX", help=text)
    text = "longest edge of the low ones (default: 336, at most half of the high one)"
    add("--low-edge", type=numbers.EDGE, metavar="PX", help=text)
    text = "which frames are high: evenly spread (the default), those at both ends, or those that"
    text += " change most"
    add("--high-policy", dest="policy", choices=("interleave", "ends", "scene"), help=text)


def hybrid_settings(args: argparse.Namespace) -> dict[str, int | str]:
    """The settings of hybrid resolution that were given."""
    names = ("high_frames", "low_frames", "high_edge", "low_edge", "policy")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if given and args.frames:
        args.parser.error(
            "--frames does not go together with hybrid resolution:"
            " give --high-frames and --low-frames instead"
        )
    return given


def add_answering(parser: argparse.ArgumentParser, max_new_tokens: int) -> None:
    """Adds how answers are decoded; `sampling` reads it."""
    add, default = parser.add_argument, "(default: %(default)s)"
    text = f"longest answer {default}"
    add("--max-new-tokens", type=numbers.TOKENS, default=max_new_tokens, metavar="N", help=text)
    add_merging(parser)
    text = "0: the likeliest token (the default); above 0: draw one"
    add("--temperature", type=numbers.TEMPERATURE, default=0.0, metavar="T", help=text)
    text = "draw only among the likeliest tokens that make up P"
    add("--top-p", type=numbers.SHARE, default=1.0, metavar="P", help=text)
    text = "above 1: repeat less"
    add("--repetition-penalty", type=numbers.POSITIVE, default=1.0, metavar="X", help=text)
    add("--seed", type=numbers.SEED, default=0, metavar="N", help=f"seed of the draws {default}")
    text = "end an answer before this text; may be given several times"
    add("--stop", action="append", default=[], metavar="TEXT", help=text)


def sampling(args: argparse.Namespace) -> elva_jax.Sampling:
    """The `Sampling` of the options of `add_answering`.

    Raises:
      ConfigError: an impossible value.
    """
    return elva_jax.Sampling(
        args.temperature, args.top_p, args.repetition_penalty, args.seed, tuple(args.stop)
    )
