"""`elva bench packing`: the fill of packed rows, from the lengths of examples alone."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from elva_jax.config.load import load
from elva_jax.config.stage_schema import DataConfig
from elva_jax.data.packing import PackingReport, RowCapacity, merges_before_bucket, simulate
from elva_jax.tools.bench.table import text_table
from elva_jax.utils import numbers
from elva_jax.video.counts import Counts, max_remaining
from elva_jax.video.layout import Clip, clip_tokens
from elva_jax.video.resize import target_size

HELP = """\
Packs examples with the sizes of a fine-tuning mix (665 images to 178 videos, Table 7) into the
rows of stage 3, without reading any data. `mix` has the sizes of such data; the other rows have
videos of a single size. `best fit over all` knows all examples at once, for which training cannot
wait. The exit status is 1 if `mix` fills less than 90 % of its tokens.

examples:
  elva bench packing
  elva bench packing --ahead 2 --seq-len 24576 --max-patches 22528"""

FRAMES = 32
GOAL = 0.9
IMAGES_PER_VIDEO = 665 / 178  # Table 7


@dataclasses.dataclass(frozen=True)
class Size:
    """One size among the media of a mix."""

    share: float  # of the images, or of the videos
    width: int  # pixels; 0: an example without media
    height: int


# Sizes of the parts of LLaVA's 665K: COCO, GQA and VG, OCR-VQA's covers, TextVQA, and
# conversations without an image.
IMAGES = (
    Size(0.40, 640, 480),
    Size(0.13, 480, 640),
    Size(0.15, 640, 427),
    Size(0.14, 500, 375),
    Size(0.08, 330, 500),
    Size(0.04, 1024, 768),
    Size(0.06, 0, 0),
)
# Assumed sizes of the videos: NeXT-QA's are 640 px wide, those of ActivityNet and PerceptionTest
# vary, LLaVA-Hound's are 596 px wide (WebVid) or upright (shorts).
VIDEOS: Mapping[str, Sequence[Size]] = {
    "mix": (
        Size(0.16, 640, 360),
        Size(0.06, 640, 480),
        Size(0.04, 360, 640),
        Size(0.06, 480, 360),
        Size(0.06, 320, 240),
        Size(0.10, 1280, 720),
        Size(0.02, 1920, 1080),
        Size(0.34, 596, 336),
        Size(0.10, 720, 1280),
        Size(0.06, 480, 848),
    ),
    "webvid": (Size(1.0, 596, 336),),
    "16:9 HD": (Size(1.0, 1280, 720),),
    "4:3 HD": (Size(1.0, 1024, 768),),
}
# Mean and deviation of the logarithm of text tokens: medians of 200 and 148.
TEXT = {"image": (5.3, 0.7), "video": (5.0, 0.7)}


def lengths(
    videos: Sequence[Size],
    examples: int,
    longest_edge: int,
    patch_size: int,
    merges: Sequence[tuple[str, float]] = (),
    seed: int = 0,
) -> Iterator[Counts]:
    """Yields the sizes of random examples of a mix; `merges` as for `video.counts.count`."""
    rng = np.random.default_rng(seed)
    for _ in range(examples):
        kind = "image" if rng.random() < IMAGES_PER_VIDEO / (1 + IMAGES_PER_VIDEO) else "video"
        sizes = IMAGES if kind == "image" else videos
        size = sizes[rng.choice(len(sizes), p=[size.share for size in sizes])]
        text = int(np.clip(rng.lognormal(*TEXT[kind]), 40, 2000))
        if not size.width:
            yield Counts(text, 0, 0, text)
            continue
        height, width = target_size(
            size.height, size.width, longest_edge=longest_edge, patch_size=patch_size
        )
        rows, columns = height // patch_size, width // patch_size
        frames = 1 if kind == "image" else FRAMES
        tokens = text + clip_tokens(Clip([(rows, columns)] * frames))
        patches = rows * columns * frames
        merged = tokens - patches + max_remaining(patches, rows * columns, merges)
        yield Counts(tokens, patches, frames, merged)


def best_fit_decreasing(examples: Sequence[Counts], capacity: Counts) -> float:
    """The share of tokens that best-fit decreasing fills, knowing all examples at once."""
    free, rows = np.tile(np.asarray(capacity), (len(examples), 1)), 0  # per row
    for counts in sorted(examples, reverse=True):
        fits = np.all(free[:rows] >= counts, axis=1)
        row = rows
        if fits.any():
            row = int(np.argmin(np.where(fits, free[:rows, 0], capacity.tokens + 1)))
        rows = max(rows, row + 1)
        free[row] -= counts
    return float(1 - free[:rows, 0].sum() / (rows * capacity.tokens))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this bench."""
    add, default = parser.add_argument, "default: configs/elva.py's stage 3"
    text = "rows' worth of waiting examples (default: %(default)s)"
    add(
        "--ahead",
        type=numbers.real(0, 1e6),
        default=DataConfig().pack_lookahead,
        metavar="ROWS",
        help=text,
    )
    add("--seq-len", type=numbers.TOKENS, metavar="S", help=f"tokens per row ({default})")
    add("--max-patches", type=numbers.TOKENS, metavar="N", help=f"patches per row ({default})")
    text = "examples of each mix (default: %(default)s)"
    add("--examples", type=numbers.ROWS, default=8000, metavar="N", help=text)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Packs each mix."""
    config = load("configs/elva.py:size=7b,stage=3")
    stage = config.stages.stage3
    data = stage.data
    capacity = RowCapacity.of_stage(stage)
    capacity = capacity._replace(
        tokens=args.seq_len or data.seq_len, patches=args.max_patches or data.max_patches
    )
    capacity = capacity._replace(
        merged_tokens=capacity.merged_tokens * capacity.tokens // data.seq_len
    )
    merges = merges_before_bucket(stage, config.model)
    rows = []
    sizes = (args.examples, data.longest_edge, config.model.patch_size, merges)
    for name, videos in VIDEOS.items():
        drawn = list(lengths(videos, *sizes))
        fitting = [counts for counts in drawn if np.all(np.asarray(counts) <= capacity)]
        packed: PackingReport = simulate(fitting, capacity, args.ahead)
        rows.append(
            {
                "mix": name,
                **dataclasses.asdict(packed),
                "best_fit_over_all": best_fit_decreasing(fitting, capacity),
                "left_out": len(drawn) - len(fitting),
            }
        )
    return {
        "bench": "packing",
        "capacity": capacity._asdict(),
        "ahead": args.ahead,
        "rows": rows,
        "ok": rows[0]["token_fill"] >= GOAL,
    }


def show(report: dict[str, Any]) -> str:
    """Formats the report."""
    capacity = report["capacity"]
    names = (
        "videos",
        "tokens filled",
        "best fit over all",
        "patches filled",
        "examples per row",
        "most waiting",
        "longest wait in rows",
    )
    rows = [
        (
            row["mix"],
            f"{row['token_fill']:.1%}",
            f"{row['best_fit_over_all']:.1%}",
            f"{row['patch_fill']:.1%}",
            f"{row['examples'] / row['rows']:.1f}",
            str(row["most_waiting"]),
            str(row["longest_wait"]),
        )
        for row in report["rows"]
    ]
    bucket = f"with a last bucket of {capacity['merged_tokens']:,}"
    size = f"rows of {capacity['tokens']:,} tokens and {capacity['patches']:,} patches {bucket}"
    head = f"{size}, {report['ahead']:g} rows' worth of examples waiting"
    return f"{head}\n\n{text_table(names, rows)}"
