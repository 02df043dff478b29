"""Options that several sub-commands share."""

from __future__ import annotations

import argparse
from typing import Any

import elva_jax


def positive(text: str) -> int:
    """A whole number above 0; for `type=` of an option."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def not_negative(text: str) -> int:
    """A whole number from 0; for `type=` of an option."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"cannot be negative, got {value}")
    return value


def shard(text: str) -> tuple[int, int]:
    """I/N with 0 <= I < N; for `type=` of an option."""
    try:
        index, count = (int(part) for part in text.split("/"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be I/N, such as 0/8, got {text}") from None
    if not 0 <= index < count:
        raise argparse.ArgumentTypeError(f"I counts from 0 to N-1, got {text}")
    return index, count


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers from 0, separated by commas; for `type=` of an option."""
    return tuple(not_negative(part) for part in text.split(","))


def add_processes(parser: argparse.ArgumentParser) -> None:
    """How several processes find one another; `process_options` reads it."""
    group = parser.add_argument_group(
        "several processes", "Under srun, mpirun or a Job of Kubernetes most of this is known."
    )
    text = "off: this process is alone, whatever the launcher says (default: %(default)s)"
    group.add_argument("--distributed", choices=("auto", "off"), default="auto", help=text)
    group.add_argument(
        "--coordinator", metavar="HOST:PORT", help="process 0's host, and a free port of it"
    )
    group.add_argument(
        "--num-processes", type=positive, metavar="N", help="how many processes there are"
    )
    group.add_argument(
        "--process-id", type=not_negative, metavar="I", help="this one's number, from 0"
    )
    group.add_argument(
        "--local-devices",
        type=numbers,
        metavar="I,J",
        help="GPUs of this process among those that it sees (default: all)",
    )
    text = "longest wait for the other processes at the start (default: %(default)s)"
    group.add_argument("--start-timeout", type=positive, default=300, metavar="SECONDS", help=text)
    text = "silence after which a process counts as dead and the others end (default: %(default)s)"
    group.add_argument(
        "--heartbeat-timeout", type=positive, default=100, metavar="SECONDS", help=text
    )


def process_options(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `parallel.launchers.detect_process` from the command line."""
    return {
        name: getattr(args, name)
        for name in ("coordinator", "num_processes", "process_id", "local_devices")
    }


def span(text: str) -> tuple[int, int]:
    """Two whole numbers A:B with 1 <= A <= B; for `type=` of an option."""
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"'{text}' is not A:B with 1 <= A <= B, such as 10:15")
    return int(first), int(last)


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """--checkpoint."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="DIR",
        help="a run's --workdir, one stage in it, one saved step, or an exported folder",
    )


def add_frames(parser: argparse.ArgumentParser) -> None:
    """How a video is sampled; those of hybrid resolution are named as the fields of `video.resolution.Hybrid`."""
    parser.add_argument(
        "--frames",
        type=positive,
        metavar="N",
        help="frames sampled from a video (default: the last stage's)",
    )
    parser.add_argument(
        "--high-frames",
        type=not_negative,
        metavar="N",
        help="hybrid resolution: frames at high resolution (default: 32)",
    )
    parser.add_argument(
        "--low-frames",
        type=not_negative,
        metavar="N",
        help="frames at low resolution beside them (default: 32)",
    )
    parser.add_argument(
        "--high-edge",
        type=positive,
        metavar="PX",
        help="longest edge of the high ones (default: the last stage's)",
    )
    parser.add_argument(
        "--low-edge",
        type=positive,
        metavar="PX",
        help="of the low ones (default: 336, at most half of the high one)",
    )
    text = "which frames are high: evenly spread (the default), those at both ends, or those that change most"
    parser.add_argument(
        "--high-policy", dest="policy", choices=("interleave", "ends", "scene"), help=text
    )


def hybrid_settings(args: argparse.Namespace) -> dict[str, int | str]:
    """The settings of hybrid resolution that were given."""
    names = ("high_frames", "low_frames", "high_edge", "low_edge", "policy")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if given and args.frames:
        args.parser.error(
            "--frames does not go together with hybrid resolution: give --high-frames and --low-frames instead"
        )
    return given


def add_answering(parser: argparse.ArgumentParser, longest: int) -> None:
    """How answers are decoded; `sampling` reads it."""
    parser.add_argument(
        "--max-new-tokens",
        type=positive,
        default=longest,
        metavar="N",
        help="longest answer (default: %(default)s)",
    )
    parser.add_argument(
        "--no-merging", dest="merging", action="store_false", help="leave token merging off"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0: the likeliest token (default); above: draw one",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="draw among the likeliest tokens that make up P only",
    )
    parser.add_argument(
        "--repetition-penalty", type=float, default=1.0, metavar="X", help="above 1: repeat less"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the draws (default: %(default)s)"
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end an answer before this; may be given again",
    )


def sampling(args: argparse.Namespace) -> elva_jax.Sampling:
    """The `Sampling` of the options of `add_answering`.

    Raises:
      ConfigError: an impossible value.
    """
    return elva_jax.Sampling(
        args.temperature, args.top_p, args.repetition_penalty, args.seed, tuple(args.stop)
    )
