"""`elva bench pipeline`: time to prepare videos, beside bare PyAV, and memory over many samples."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from elva_jax.errors import ConfigError, DataError
from elva_jax.tools.bench.arguments import add_repeats
from elva_jax.tools.bench.table import text_table
from elva_jax.tools.bench.timing import interleaved
from elva_jax.utils import numbers

if TYPE_CHECKING:
    import numpy as np

HELP = """\
Times the steps from a video file to a batch on one core: decoding, scaling and cutting into
patches, beside bare PyAV, which only decodes and scales; then layout and packing. --samples also
runs the whole input pipeline over that many samples and records its memory.

examples:
  elva bench pipeline
  elva bench pipeline clips/*.mp4 --frames 32 --longest-edge 672
  elva bench pipeline --frames 4 --longest-edge 112 --samples 100000
  elva bench pipeline clips/*.mp4 --examples-per-step 128 --step-seconds 12"""

SYNTHETIC = ((360, 640), (240, 320), (720, 1280))  # (height, width) of the default clips
SECONDS, RATE = 8, 25
QUESTION, ANSWER = 16, 64  # text tokens of the synthetic conversation
MARKS = 10  # records of the memory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this bench."""
    add = parser.add_argument
    text = "videos (default: three synthetic ones, H.264)"
    add("clips", nargs="*", type=Path, metavar="FILE", help=text)
    text = "frames per video (default: %(default)s)"
    add("--frames", type=numbers.FRAMES, default=32, metavar="N", help=text)
    text = "of the frames (default: %(default)s)"
    add("--longest-edge", type=numbers.EDGE, default=672, metavar="PX", help=text)
    text = "edge of a patch (default: %(default)s)"
    add("--patch-size", type=numbers.EDGE, default=28, metavar="PX", help=text)
    text = "also run the whole pipeline over N samples"
    add("--samples", type=numbers.ROWS, metavar="N", help=text)
    text = "examples of a training step, to compute the cores that feed it"
    add("--examples-per-step", type=numbers.ROWS, metavar="N", help=text)
    text = "duration of that step on all accelerators together"
    add("--step-seconds", type=numbers.SECONDS, metavar="S", help=text)
    add_repeats(parser, 3)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Times every clip.

    Raises:
      ConfigError: only one of --examples-per-step and --step-seconds, or no positive time.
    """
    seconds = args.step_seconds
    if (args.examples_per_step is None) != (seconds is None) or (seconds or 1) <= 0:
        raise ConfigError("--examples-per-step and --step-seconds belong together, both above 0")
    with tempfile.TemporaryDirectory() as folder:
        clips = args.clips or _synthesize(Path(folder))
        rows = [_time(path, args) for path in clips]
        report: dict[str, Any] = {
            "frames": args.frames,
            "longest_edge": args.longest_edge,
            "made_up": not args.clips,
            "rows": rows,
        }
        if args.samples:
            report["memory"] = _record_memory(clips, args, Path(folder))
    total = {name: sum(row["seconds"][name] for row in rows) for name in rows[0]["seconds"]}
    rest = total["layout"] + total["pack"]
    speed = len(rows) / (total["decode"] + rest)
    report |= {
        "decode_share_of_bare": total["bare"] / total["decode"],
        "rest_share_of_decode": rest / total["decode"],
        "samples_per_core_second": speed,
    }
    if args.step_seconds:
        report["cores"] = args.examples_per_step / args.step_seconds / speed
    return report


def _time(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of each step for one clip, interleaved."""
    import numpy as np

    from elva_jax.data.collate import PackedCollator
    from elva_jax.data.packing import PackingBuffer, RowCapacity, Sample
    from elva_jax.video.counts import Counts, count
    from elva_jax.video.layout import Clip, Text, TokenLayout, build_layout
    from elva_jax.video.resize import patchify

    frames, size = _frames(path, args), args.patch_size
    grids = tuple((frame.shape[0] // size, frame.shape[1] // size) for frame in frames)
    question, answer = Text(range(QUESTION)), Text(range(ANSWER), weight=1.0)

    def lay_out() -> tuple[TokenLayout, Counts]:
        layout = build_layout([question, Clip(grids), question, answer])
        return layout, count(layout)

    layout, counts = lay_out()
    sample = Sample(
        layout=layout,
        patches=patchify(frames, size),
        teacher_frames={},
        media=np.zeros(len(frames), np.int32),
        counts=counts,
    )
    capacity = RowCapacity(counts.tokens, counts.patches, counts.frames, counts.tokens)

    def pack() -> dict[str, Any]:
        buffer = PackingBuffer(capacity, lookahead=1)
        buffer.add(sample, counts)
        return PackedCollator(capacity=capacity, patch_width=size**2 * 3)([buffer.take()])

    steps: dict[str, Callable[[], Any]] = {
        "bare": lambda: _bare_pyav(path, args),
        "decode": lambda: len(patchify(_frames(path, args), size)),
        "layout": lambda: len(lay_out()),
        "pack": lambda: len(pack()),
    }
    return {
        "clip": path.name,
        "frames": len(frames),
        "size": list(frames[0].shape[:2]),
        "seconds": {name: s["median"] for name, s in interleaved(steps, args.repeats).items()},
    }


def _frames(path: Path, args: argparse.Namespace) -> list[np.ndarray]:
    from elva_jax.video.hybrid import Hybrid, assign_resolution, draw_sizes
    from elva_jax.video.read import read_frames

    hybrid = Hybrid(high_frames=args.frames, low_frames=0, high_edge=args.longest_edge)
    reduced: list[Any] = read_frames(
        path,
        num_frames=args.frames,
        transform=lambda p: draw_sizes(p, hybrid, patch_size=args.patch_size),
    ).pixels
    return assign_resolution(reduced, hybrid)


def _bare_pyav(path: Path, args: argparse.Namespace) -> int:
    """Reads the same frames at the same size with PyAV: from the start, on one thread."""
    import av

    from elva_jax.video.read import sample_times
    from elva_jax.video.reader import ONE_THREAD
    from elva_jax.video.resize import target_size

    taken = 0
    with av.open(str(path)) as container:
        stream: Any = container.streams.video[0]
        stream.thread_count = 1
        length: Any = (stream.duration or 0) * stream.time_base
        length = length or (container.duration or 0) / av.time_base
        times = [float(time) for time in sample_times(length, args.frames, None)]
        shown: Any = None
        for frame in container.decode(stream):
            while shown is not None and taken < len(times) and frame.time > times[taken]:
                height, width = target_size(
                    shown.height,
                    shown.width,
                    longest_edge=args.longest_edge,
                    patch_size=args.patch_size,
                )
                shown.reformat(
                    width, height, format="rgb24", interpolation="BICUBIC", **ONE_THREAD
                ).to_ndarray()
                taken += 1
            shown = frame
            if taken == len(times):
                break
    return taken


def _synthesize(folder: Path) -> list[Path]:
    """Clips of a moving square on noise, with B-frames and a key frame every 250 frames."""
    import av
    import numpy as np

    paths = []
    for height, width in SYNTHETIC:
        paths.append(folder / f"made-{height}p.mp4")
        noise = np.random.default_rng(height).integers(0, 60, (height, width, 3), np.uint8)
        with av.open(str(paths[-1]), "w") as container:
            options = {"preset": "veryfast", "g": "250"}
            stream = container.add_stream("libx264", rate=RATE, options=options)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            side = height // 4
            for t in range(SECONDS * RATE):
                picture = noise.copy()
                left = (t * 3) % (width - side)
                picture[side : height // 2, left : left + side] = (200, 60 + t % 100, 30)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            container.mux(stream.encode())
    return paths


def _record_memory(clips: list[Path], args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Runs a stage's input pipeline over the clips in this process, and records its memory."""
    from elva_jax.data.batches import conversation_batches
    from elva_jax.data.tokenizer import load
    from elva_jax.tools.bench.memory import resident_bytes
    from elva_jax.tools.datasets.moving_shapes.tokenizer import build_for_moving_shapes

    build_for_moving_shapes(folder / "tokenizer", ("easy",), vocab_size=500, scenes=60)
    batches = conversation_batches(
        _config(clips, args, folder), "bench", load(folder / "tokenizer")
    )
    marks, start = [], time.perf_counter()
    for k in range(1, args.samples + 1):
        next(batches)
        if k % max(args.samples // MARKS, 1) == 0:
            seconds = time.perf_counter() - start
            marks.append({"samples": k, "resident_bytes": resident_bytes(), "seconds": seconds})
    batches.close()
    if batches.dropped:
        reasons = ", ".join(batches.reasons)
        raise DataError(f"{batches.dropped} samples could not be read: {reasons}")
    speed = args.samples / marks[-1]["seconds"]
    return {"samples": args.samples, "samples_per_second": speed, "marks": marks}


def _config(clips: list[Path], args: argparse.Namespace, folder: Path) -> Any:
    """A config with one stage, which reads the clips."""
    from elva_jax.config import schema
    from elva_jax.video.layout import frame_tokens

    turns = [
        {"from": "human", "value": "<video>\nWhat happens?"},
        {"from": "gpt", "value": "A square moves."},
    ]
    records = [{"video": str(path.resolve()), "conversations": turns} for path in clips]
    notes = folder / "notes.jsonl"
    notes.write_text("".join(json.dumps(record) + "\n" for record in records))
    side = max(args.longest_edge // args.patch_size, 1)
    config, stage = schema.base(), schema.stage()
    config.model.patch_size, config.stages.bench = args.patch_size, stage
    stage.batch_size = 1
    stage.data.mixture.clips = schema.source(str(notes), root="/")
    stage.data.update(
        num_frames=args.frames,
        longest_edge=args.longest_edge,
        pack=False,
        system_prompt="",
        seq_len=args.frames * frame_tokens(side, side) + 256,
        max_patches=args.frames * side**2,
        max_frames=args.frames,
    )
    return config


def show(report: dict[str, Any]) -> str:
    """Formats the report."""
    rows = []
    for row in report["rows"]:
        seconds = row["seconds"]
        rest = (seconds["layout"] + seconds["pack"]) / seconds["decode"]
        times = [f"{1e3 * seconds[name]:.1f}" for name in ("bare", "decode", "layout", "pack")]
        size = f"{row['frames']} x {row['size'][0]}x{row['size'][1]}"
        speed = f"{seconds['bare'] / seconds['decode']:.0%}"
        rows.append([row["clip"], size, *times, speed, f"{rest:.1%}"])
    headings = ["clip", "frames", "bare PyAV ms", "decode ms", "layout ms", "pack ms"]
    headings += ["speed of bare", "rest of decode"]
    speed = f"{report['samples_per_core_second']:.2f} samples per second and core"
    if "cores" in report:
        speed += f"; {report['cores']:.1f} cores feed the training step"
    rest = f"layout and packing take {report['rest_share_of_decode']:.1%} of the time of decoding"
    lines = [
        text_table(headings, rows, words=2),
        f"in all: {report['decode_share_of_bare']:.0%} of bare PyAV's speed; {rest};",
        speed,
    ]
    if "memory" in report:
        marks = [
            [
                f"{mark['samples']:,}",
                f"{mark['resident_bytes'] / 2**20:,.0f}",
                f"{mark['samples'] / mark['seconds']:,.1f}",
            ]
            for mark in report["memory"]["marks"]
        ]
        lines += ["", text_table(["samples", "resident MiB", "samples/s"], marks, words=0)]
    return "\n".join(lines)
