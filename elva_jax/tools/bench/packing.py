"""`elva bench packing`: how full rows are, from the lengths of examples alone."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from elva_jax.data.packing import AHEAD, Packed, budgets, merges_before_bucket, simulate
from elva_jax.video.layout import Clip, Counts, clip_tokens, most_left
from elva_jax.video.resize import target_size

HELP = """\
Packs examples with the sizes of a fine-tuning mix (665 images to 178 videos, Table 7), without reading any, into the rows of stage 3.
`mix` has the sizes that such data have; the others show what one size of video alone makes of it. `best fit over all` knows all examples at
once, which training cannot wait for. The exit status is 1 where `mix` fills less than 90 % of its tokens.

examples:
  elva bench packing
  elva bench packing --ahead 2 --seq-len 24576 --max-patches 22528"""

FRAMES = 32
GOAL = 0.9
IMAGES_PER_VIDEO = 665 / 178  # Table 7


class Size(NamedTuple):
    """One size among the media of a mix."""

    share: float  # of the images, or of the videos
    width: int  # pixels; 0: an example of text alone
    height: int


# Sizes by what the sets of LLaVA's 665K are made of: COCO, GQA and VG, OCR-VQA's covers, TextVQA, and conversations without an image.
IMAGES = (
    Size(0.40, 640, 480),
    Size(0.13, 480, 640),
    Size(0.15, 640, 427),
    Size(0.14, 500, 375),
    Size(0.08, 330, 500),
    Size(0.04, 1024, 768),
    Size(0.06, 0, 0),
)
# What is assumed of the videos: NeXT-QA's 640 px wide, those of ActivityNet and PerceptionTest of many sizes, LLaVA-Hound's from WebVid
# 596 px wide and its shorts upright.
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
TEXT = {
    "image": (5.3, 0.7),
    "video": (5.0, 0.7),
}  # logarithms of the tokens of text, mean and deviation: medians of 200 and 148


def lengths(
    videos: Sequence[Size],
    examples: int,
    longest_edge: int,
    patch_size: int,
    merges: Sequence[tuple[str, float]] = (),
    seed: int = 0,
) -> Iterator[Counts]:
    """What the examples of a mix take of a row's budgets, in random order; `merges` as for `video.layout.count`."""
    rng = np.random.default_rng(seed)
    for _ in range(examples):
        kind = "image" if rng.random() < IMAGES_PER_VIDEO / (1 + IMAGES_PER_VIDEO) else "video"
        sizes = IMAGES if kind == "image" else videos
        _, width, height = sizes[rng.choice(len(sizes), p=[size.share for size in sizes])]
        text = int(np.clip(rng.lognormal(*TEXT[kind]), 40, 2000))
        if not width:
            yield Counts(text, 0, 0, text)
            continue
        rows, columns = (
            edge // patch_size
            for edge in target_size(height, width, longest_edge=longest_edge, patch_size=patch_size)
        )
        frames = 1 if kind == "image" else FRAMES
        tokens = text + clip_tokens(Clip([(rows, columns)] * frames))
        patches = rows * columns * frames
        yield Counts(
            tokens, patches, frames, tokens - patches + most_left(patches, rows * columns, merges)
        )


def best_fit_decreasing(examples: Sequence[Counts], capacity: Counts) -> float:
    """The share of tokens filled by best-fit decreasing over all examples at once."""
    room, rows = np.tile(np.asarray(capacity), (len(examples), 1)), 0
    for counts in sorted(examples, reverse=True):
        fits = np.all(room[:rows] >= counts, axis=1)
        row = (
            int(np.argmin(np.where(fits, room[:rows, 0], capacity.tokens + 1)))
            if fits.any()
            else rows
        )
        rows = max(rows, row + 1)
        room[row] -= counts
    return float(1 - room[:rows, 0].sum() / (rows * capacity.tokens))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The rows, and how many examples are drawn."""
    parser.add_argument(
        "--ahead",
        type=float,
        default=AHEAD,
        metavar="ROWS",
        help="rows' worth of examples that wait (default %(default)s)",
    )
    parser.add_argument(
        "--seq-len",
        type=int,
        metavar="S",
        help="tokens of a row; default: those of configs/elva.py's stage 3",
    )
    parser.add_argument(
        "--max-patches",
        type=int,
        metavar="N",
        help="patches of a row; default: those of configs/elva.py's stage 3",
    )
    parser.add_argument(
        "--examples",
        type=int,
        default=8000,
        metavar="N",
        help="examples drawn of each mix (default %(default)s)",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Fill of each mix."""
    from elva_jax.config.load import load

    config = load("configs/elva.py:size=7b,stage=3")
    data = config.stages.stage3.data
    capacity = budgets(config, "stage3")
    capacity = capacity._replace(
        tokens=args.seq_len or data.seq_len, patches=args.max_patches or data.max_patches
    )
    capacity = capacity._replace(floor=capacity.floor * capacity.tokens // data.seq_len)
    merges = merges_before_bucket(config, "stage3")
    rows = []
    for name, videos in VIDEOS.items():
        drawn = list(
            lengths(videos, args.examples, data.longest_edge, config.model.patch_size, merges)
        )
        fitting = [
            counts
            for counts in drawn
            if all(n <= most for n, most in zip(counts, capacity, strict=True))
        ]
        packed: Packed = simulate(fitting, capacity, args.ahead)
        left_out = len(drawn) - len(fitting)
        rows.append(
            {
                "mix": name,
                **packed._asdict(),
                "best_fit_over_all": best_fit_decreasing(fitting, capacity),
                "left_out": left_out,
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
    """The table."""
    from elva_jax.tools.bench.table import text_table

    capacity = report["capacity"]
    names = (
        "videos",
        "tokens filled",
        "best fit over all",
        "patches filled",
        "examples a row",
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
    bucket = f"with a last bucket of {capacity['floor']:,}"
    size = f"rows of {capacity['tokens']:,} tokens and {capacity['patches']:,} patches {bucket}"
    head = f"{size}, {report['ahead']:g} rows' worth of examples waiting"
    return f"{head}\n\n{text_table(names, rows)}"
