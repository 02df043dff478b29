"""`elva bench pipeline`: what preparing videos costs, beside bare PyAV, and whether memory stays flat."""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from elva_jax.commands import flags
from elva_jax.errors import ConfigError, DataError
from elva_jax.tools.bench.arguments import add_repeats

HELP = """\
Times what stands between a video file and a batch, on one core: decoding, scaling and cutting into patches, beside PyAV alone, which only
decodes and scales; then laying out and packing. --samples runs the whole input pipeline over so many samples and watches the memory.

examples:
  elva bench pipeline
  elva bench pipeline clips/*.mp4 --frames 32 --longest-edge 672
  elva bench pipeline --frames 4 --longest-edge 112 --samples 100000
  elva bench pipeline clips/*.mp4 --examples-per-step 128 --step-seconds 12"""

MADE = (
    (360, 640),
    (240, 320),
    (720, 1280),
)  # (height, width) of the clips that are made where none are given
SECONDS, RATE = 8, 25
QUESTION, ANSWER = 16, 64  # text tokens of a made-up conversation
MARKS = 10  # times that memory is looked at


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "clips",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="videos (default: three that are made up, H.264)",
    )
    parser.add_argument(
        "--frames",
        type=flags.positive,
        default=32,
        metavar="N",
        help="of a video (default: %(default)s)",
    )
    parser.add_argument(
        "--longest-edge",
        type=flags.positive,
        default=672,
        metavar="PX",
        help="(default: %(default)s)",
    )
    parser.add_argument(
        "--patch-size", type=flags.positive, default=28, metavar="PX", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--samples",
        type=flags.positive,
        metavar="N",
        help="run the whole pipeline over N samples as well",
    )
    parser.add_argument(
        "--examples-per-step",
        type=flags.positive,
        metavar="N",
        help="of a training step, for the cores that feed it",
    )
    parser.add_argument(
        "--step-seconds",
        type=float,
        metavar="S",
        help="that the step takes on all accelerators together",
    )
    add_repeats(parser, 3)


def run(args: argparse.Namespace) -> dict[str, Any]:
    if (args.examples_per_step is None) != (args.step_seconds is None) or (
        args.step_seconds or 1
    ) <= 0:
        raise ConfigError("--examples-per-step and --step-seconds belong together, both above 0")
    with tempfile.TemporaryDirectory() as folder:
        clips = args.clips or _make(Path(folder))
        rows = [_time(path, args) for path in clips]
        report: dict[str, Any] = {
            "frames": args.frames,
            "longest_edge": args.longest_edge,
            "made_up": not args.clips,
            "rows": rows,
        }
        if args.samples:
            report["memory"] = _watch(clips, args, Path(folder))
    total = {name: sum(row["seconds"][name] for row in rows) for name in rows[0]["seconds"]}
    ours = total["decode"] + total["layout"] + total["pack"]
    report |= {
        "decode_share_of_bare": total["bare"] / total["decode"],
        "rest_share_of_decode": (total["layout"] + total["pack"]) / total["decode"],
        "samples_per_core_second": len(rows) / ours,
    }
    if args.step_seconds:
        report["cores"] = (
            args.examples_per_step / args.step_seconds / report["samples_per_core_second"]
        )
    return report


def _time(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each part for one clip, medians, taken in turn."""
    from elva_jax.data.packing import Sample, Window, collate
    from elva_jax.tools.bench.timing import interleaved
    from elva_jax.video.layout import Clip, Counts, Text, TokenLayout, build_layout, count
    from elva_jax.video.resize import patchify

    frames = _frames(path, args)
    grids = tuple(
        (frame.shape[0] // args.patch_size, frame.shape[1] // args.patch_size) for frame in frames
    )

    def lay_out() -> tuple[TokenLayout, Counts]:
        layout = build_layout(
            [Text(range(QUESTION)), Clip(grids), Text(range(QUESTION)), Text(range(ANSWER), 1.0)]
        )
        return layout, count(layout)

    layout, counts = lay_out()
    sample = Sample(layout, patchify(frames, args.patch_size), None, counts)
    capacity = Counts(
        sample.counts.tokens, sample.counts.patches, sample.counts.frames, sample.counts.tokens
    )

    def packed() -> dict:
        window = Window(capacity)
        window.add(sample, counts)
        return collate([window.take()], capacity, args.patch_size**2 * 3, None)

    parts: dict[str, Callable[[], Any]] = {
        "bare": lambda: _bare(path, args),
        "decode": lambda: len(patchify(_frames(path, args), args.patch_size)),
        "layout": lambda: len(lay_out()),
        "pack": lambda: len(packed()),
    }
    seconds = {name: spread.median for name, spread in interleaved(parts, args.repeats).items()}
    return {
        "clip": path.name,
        "frames": len(frames),
        "size": list(frames[0].shape[:2]),
        "seconds": seconds,
    }


def _frames(path: Path, args: argparse.Namespace) -> list:
    from elva_jax.video.hybrid import Hybrid, reduce_frame, settle
    from elva_jax.video.read import read_frames

    hybrid = Hybrid(args.frames, 0, args.longest_edge)
    reduced = read_frames(
        path,
        num_frames=args.frames,
        transform=lambda p: reduce_frame(p, hybrid, patch_size=args.patch_size),
    ).pixels
    return settle(reduced, hybrid)


def _bare(path: Path, args: argparse.Namespace) -> int:
    """What a short loop over PyAV takes for the same frames at the same size: decoded from the start, on one thread, scaled by it."""
    import av

    from elva_jax.video.read import sample_times
    from elva_jax.video.reader import ONE_THREAD
    from elva_jax.video.resize import target_size

    taken = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        length = (
            stream.duration * stream.time_base
            if stream.duration
            else container.duration / av.time_base
        )
        times = [float(time) for time in sample_times(length, args.frames, None)]
        held = None
        for frame in container.decode(stream):
            while held is not None and len(taken) < len(times) and frame.time > times[len(taken)]:
                height, width = target_size(
                    held.height,
                    held.width,
                    longest_edge=args.longest_edge,
                    patch_size=args.patch_size,
                )
                drawn = held.reformat(
                    width, height, format="rgb24", interpolation="BICUBIC", **ONE_THREAD
                )
                taken.append(drawn.to_ndarray())
            held = frame
            if len(taken) == len(times):
                break
    return len(taken)


def _make(folder: Path) -> list[Path]:
    """Clips of moving squares on noise, with B-frames and a key frame every 250, as ordinary encoders have them."""
    import av
    import numpy as np

    paths = []
    for height, width in MADE:
        paths.append(folder / f"made-{height}p.mp4")
        noise = np.random.default_rng(height).integers(0, 60, (height, width, 3), np.uint8)
        with av.open(str(paths[-1]), "w") as container:
            stream = container.add_stream(
                "libx264", rate=RATE, options={"preset": "veryfast", "g": "250"}
            )
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            for t in range(SECONDS * RATE):
                picture = noise.copy()
                picture[height // 4 : height // 2, (t * 3) % (width - height // 4) :][
                    :, : height // 4
                ] = (200, 60 + t % 100, 30)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            container.mux(stream.encode())
    return paths


def _watch(clips: list[Path], args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Runs the input pipeline of a stage over the clips, in this process, and notes what memory it holds."""
    import time

    from elva_jax.config import schema
    from elva_jax.data.pipeline import make_batches
    from elva_jax.data.tokenizer import load
    from elva_jax.tools.bench.memory import resident_bytes
    from elva_jax.tools.datasets.moving_shapes.tokenizer import build_for_moving_shapes
    from elva_jax.video.layout import frame_tokens

    turns = [
        {"from": "human", "value": "<video>\nWhat happens?"},
        {"from": "gpt", "value": "A square moves."},
    ]
    notes = folder / "notes.jsonl"
    notes.write_text(
        "".join(
            json.dumps({"video": str(path.resolve()), "conversations": turns}) + "\n"
            for path in clips
        )
    )
    build_for_moving_shapes(folder / "tokenizer", ("easy",), vocab_size=500, scenes=60)
    side = max(args.longest_edge // args.patch_size, 1)
    config, stage = schema.base(), schema.stage()
    config.model.patch_size, config.stages.bench = args.patch_size, stage
    stage.batch_size = 1
    stage.data.mixture.clips = schema.source(str(notes), root="/")
    stage.data.update(
        num_frames=args.frames, longest_edge=args.longest_edge, pack=False, system_prompt=""
    )
    stage.data.update(
        seq_len=args.frames * frame_tokens(side, side) + 256,
        max_patches=args.frames * side**2,
        max_frames=args.frames,
    )
    batches = make_batches(config, "bench", load(folder / "tokenizer"))
    marks, start = [], time.perf_counter()
    for k in range(1, args.samples + 1):
        next(batches)
        if k % max(args.samples // MARKS, 1) == 0:
            marks.append(
                {
                    "samples": k,
                    "resident_bytes": resident_bytes(),
                    "seconds": time.perf_counter() - start,
                }
            )
    batches.close()
    if batches.dropped:
        raise DataError(
            f"{batches.dropped} samples could not be read: {', '.join(batches.reasons)}"
        )
    return {
        "samples": args.samples,
        "samples_per_second": args.samples / marks[-1]["seconds"],
        "marks": marks,
    }


def show(report: dict[str, Any]) -> str:
    from elva_jax.tools.bench.table import text_table

    rows = []
    for row in report["rows"]:
        s = row["seconds"]
        rest = (s["layout"] + s["pack"]) / s["decode"]
        times = [f"{1e3 * s[name]:.1f}" for name in ("bare", "decode", "layout", "pack")]
        rows.append(
            [
                row["clip"],
                f"{row['frames']} x {row['size'][0]}x{row['size'][1]}",
                *times,
                f"{s['bare'] / s['decode']:.0%}",
                f"{rest:.1%}",
            ]
        )
    out = io.StringIO()
    headings = [
        "clip",
        "frames",
        "bare PyAV ms",
        "decode ms",
        "layout ms",
        "pack ms",
        "speed of bare",
        "rest of decode",
    ]
    print(text_table(headings, rows, words=2), file=out)
    print(f"in all: {report['decode_share_of_bare']:.0%} of bare PyAV's speed; ", end="", file=out)
    print(
        f"layout and packing take {report['rest_share_of_decode']:.1%} of the time of decoding;",
        file=out,
    )
    print(f"{report['samples_per_core_second']:.2f} samples a second on a core", end="", file=out)
    if "cores" in report:
        print(f"; {report['cores']:.1f} cores feed the training step", end="", file=out)
    if "memory" in report:
        memory = report["memory"]
        rows = [
            [
                f"{m['samples']:,}",
                f"{m['resident_bytes'] / 2**20:,.0f}",
                f"{m['samples'] / m['seconds']:,.1f}",
            ]
            for m in memory["marks"]
        ]
        print(
            "\n\n" + text_table(["samples", "resident MiB", "samples/s"], rows, words=0),
            end="",
            file=out,
        )
    return out.getvalue()
