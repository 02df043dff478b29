"""`elva data`: its options, and what it prints."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from elva_jax.commands import flags
from elva_jax.errors import ConfigError

if TYPE_CHECKING:
    from elva_jax.data.example import Example
    from elva_jax.tools.datasets.build.plan import Plan
    from elva_jax.tools.datasets.build.prepare import Counting

HELP = """\
Builds data sets and looks into them. A SOURCE is what a config's mixture can name: a LLaVA .json or .jsonl, a WebVid .csv, WebDataset
.tar shards, or a data set that was built. docs/data.md tells more.

examples:
  elva data build moving_shapes/easy --data-dir .data
  elva data build my/notes.json --root my/videos --name my_notes --longest-edge 448 --workers 8
  elva data inspect my/notes.json --root my/videos --out /tmp/notes
  elva data inspect my_notes --verify
  elva data show moving_shapes/easy --split test --index 3 --out /tmp/record"""

BUILD_HELP = """\
Turns a source into ArrayRecord files that a config names as base.source(NAME, SPLIT), with a manifest of what is in them.
Started again it goes on where it stopped. moving_shapes/easy and moving_shapes/hard are drawn and need no --name.

examples:
  elva data build moving_shapes/easy --data-dir .data
  elva data build my/notes.json --root my/videos --name my_notes
  elva data build 'web/clips-{000..099}.tar' --name clips --longest-edge 448 --tokenizer .data/tokenizer --shard 3/16"""

INSPECT_HELP = """\
Counts what is in a source or a built data set, and with --out draws some of its frames with their text, and its lengths in tokens.
A built data set's numbers come from its manifest, unless options ask for others.

examples:
  elva data inspect my/notes.json --root my/videos --out /tmp/notes
  elva data inspect my_notes --split train --verify"""

SHOW_HELP = """\
Writes one record of a source or a built data set to a folder: its media, a sheet of their frames, what is said about them.

examples:
  elva data show moving_shapes/easy --split test --index 3 --out /tmp/record
  elva data show my/notes.json --root my/videos --out /tmp/record"""

DRAWN = ("moving_shapes/easy", "moving_shapes/hard")


def register(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds `data` with `command(name, summary, text, run, under)`, which makes a sub-command of `elva`, or of another one."""
    parser = command("data", "build data sets and look into them", HELP, None)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    build = command(
        "build",
        "build a data set of a source (or moving_shapes, and its tokenizer)",
        BUILD_HELP,
        _build,
        actions,
    )
    _add_source(
        build, split="train", about_split="name of the split to build (default: %(default)s)"
    )
    build.add_argument(
        "--name", metavar="NAME", help="of the data set: lower-case letters, digits and _"
    )
    build.add_argument(
        "--source-split",
        metavar="SPLIT",
        help="of a source that is a built data set (default: that of --split)",
    )
    build.add_argument(
        "--longest-edge",
        type=flags.positive,
        default=0,
        metavar="PX",
        help="transcode larger media down to it",
    )
    build.add_argument(
        "--shard-size",
        type=flags.positive,
        default=1000,
        metavar="N",
        help="records of the source that go into a file (%(default)s)",
    )
    build.add_argument(
        "--shard",
        type=flags.shard,
        default=(0, 1),
        metavar="I/N",
        help="build part I (from 0) of the files on N hosts",
    )
    build.add_argument(
        "--workers",
        type=flags.positive,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes (default: one a core)",
    )
    _add_counting(build)

    inspect = command(
        "inspect",
        "count and draw what is in a source or a data set",
        INSPECT_HELP,
        _inspect,
        actions,
    )
    _add_source(
        inspect, split="train", about_split="split of a built data set (default: %(default)s)"
    )
    inspect.add_argument(
        "--limit",
        type=flags.not_negative,
        metavar="N",
        help="count N records, evenly spread (default: 1000; 0: all)",
    )
    inspect.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write statistics.json, sheet.png and tokens.png there",
    )
    inspect.add_argument(
        "--examples",
        type=flags.positive,
        default=8,
        metavar="N",
        help="records on the sheet (default: %(default)s)",
    )
    inspect.add_argument(
        "--verify",
        action="store_true",
        help="compare every file of a built data set with its checksum, and stop",
    )
    _add_counting(inspect)

    show = command(
        "show", "write one record to a folder: media, frames, annotation", SHOW_HELP, _show, actions
    )
    _add_source(show, split="test", about_split="split of a built data set (default: %(default)s)")
    show.add_argument(
        "--index", type=int, default=0, metavar="I", help="which record (default: %(default)s)"
    )
    show.add_argument("--out", required=True, metavar="DIR", help="folder to write to")


def _add_source(parser: argparse.ArgumentParser, split: str, about_split: str) -> None:
    parser.add_argument("source", metavar="SOURCE", help="file or data set")
    parser.add_argument(
        "--root",
        default="",
        metavar="DIR",
        help="folder that a file's media paths are relative to (default: the file's)",
    )
    parser.add_argument(
        "--data-dir",
        default=".data",
        metavar="DIR",
        help="where data sets are built (default: %(default)s)",
    )
    parser.add_argument("--split", default=split, help=about_split)


def _add_counting(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what tokens are counted for")
    group.add_argument(
        "--tokenizer",
        default="",
        metavar="DIR",
        help="a transformers tokenizer (default: text is not counted)",
    )
    group.add_argument(
        "--frames",
        type=flags.positive,
        default=32,
        metavar="N",
        help="most frames of a video (default: %(default)s)",
    )
    group.add_argument(
        "--edge",
        type=flags.positive,
        default=448,
        metavar="PX",
        help="their longest edge (default: %(default)s)",
    )
    group.add_argument(
        "--patch-size",
        type=flags.positive,
        default=28,
        metavar="PX",
        help="side of a patch (default: %(default)s)",
    )


def _build(args: argparse.Namespace, _) -> int:
    if args.name is None:
        return _draw(args)
    from elva_jax.tools.datasets.build import manifest, run, start

    plan, preparation = start.begin(
        args.source,
        args.data_dir,
        name=args.name,
        split=args.split,
        source_split=args.source_split,
        root=args.root,
        longest_edge=args.longest_edge,
        shard_size=args.shard_size,
        counting=_counting(args),
    )
    try:
        run.run(plan, preparation, plan.of_host(*args.shard), args.workers)
    except KeyboardInterrupt:
        left = len(manifest.missing(plan))
        print(
            f"elva data: interrupted; {plan.shards - left} of {plan.shards} files are built, start again to go on",
            file=sys.stderr,
        )
        return 130
    return _finish(plan)


def _finish(plan: Plan) -> int:
    """Makes a data set of the files if all are there, and says what there is."""
    from elva_jax.tools.datasets.build import manifest
    from elva_jax.tools.datasets.build.plan import ranges

    if left := manifest.missing(plan):
        print(
            f"{plan.folder}: {plan.shards - len(left)} of {plan.shards} files of '{plan.split}' are built; still missing: {ranges(left)}"
        )
        return 0
    found = manifest.finish(plan)["statistics"]
    rejected = plan.records - found["records"]
    print(
        f"{plan.folder}: {plan.split}: {found['records']:,} records in {plan.shards:,} files, {found['bytes'] / 2**30:.3f} GiB of media"
    )
    print(manifest.manifest_path(plan.folder, plan.split))
    if rejected:
        reason, worst = next(iter(found["rejected"].items()))
        print(
            f"{manifest.rejected_path(plan.folder, plan.split)}: {rejected:,} rejected, {worst['records']:,} of them: {reason}"
        )
    return 0


def _draw(args: argparse.Namespace) -> int:
    """moving_shapes, and its tokenizer."""
    if args.source not in DRAWN:
        if args.source.startswith("moving_shapes"):
            raise ConfigError(f"{args.source}: no such data set; there are {' and '.join(DRAWN)}")
        args.parser.error("the following arguments are required: --name")
    from elva_jax.tools.datasets.moving_shapes import builder
    from elva_jax.tools.datasets.moving_shapes.tokenizer import build_for_moving_shapes

    print(builder.build(args.data_dir, args.source.partition("/")[2]).data_dir)
    folder = Path(args.data_dir) / "tokenizer"
    if not folder.exists():
        build_for_moving_shapes(folder)
    print(folder)
    return 0


def _inspect(args: argparse.Namespace, _) -> int:
    from elva_jax.tools.datasets import inspect
    from elva_jax.tools.datasets.build import manifest, run, start

    if args.verify:
        return _verify(args)
    examples = start.open_source(args.source, args.data_dir, args.split, args.root)
    counting, asked = _counting(args), ("limit", "tokenizer", "frames", "edge", "patch_size")
    usual = all(getattr(args, name) == args.parser.get_default(name) for name in asked)
    found = (
        manifest.statistics(start.folder(args.source, args.data_dir), args.split) if usual else None
    )
    if found:
        statistics, counting = found
    else:
        indices = inspect.spread(len(examples), 1000 if args.limit is None else args.limit)
        if len(indices) < len(examples):
            print(f"{len(indices):,} of {len(examples):,} records, evenly spread:")
        with run.progress(args.source, len(indices)) as advance:
            statistics = inspect.count(examples, counting, indices, advance)
    print(inspect.table(statistics, counting))
    if args.out:
        for path in inspect.write(
            args.out, args.source, statistics, counting, _readable(examples, args.examples)
        ):
            print(path)
    return 0


def _verify(args: argparse.Namespace) -> int:
    """Compares the files of a built data set with their checksums."""
    from elva_jax.tools.datasets.build import manifest, start

    total, bad = 0, 0
    for file, problem in manifest.verify(start.folder(args.source, args.data_dir), args.split):
        total += 1
        if problem:
            bad += 1
            print(f"{file}: {problem}")
    print(f"{total - bad} of {total} files are as they were built")
    return 1 if bad else 0


def _readable(examples: Sequence[Example], number: int) -> list[Example]:
    """Some examples, evenly spread, without those that cannot be read."""
    from elva_jax.errors import ElvaError
    from elva_jax.tools.datasets.inspect import spread

    found = []
    for index in spread(len(examples), number):
        try:
            found.append(examples[index])
        except ElvaError:
            continue
    return found


def _show(args: argparse.Namespace, _) -> int:
    from elva_jax.tools.datasets.show import show

    print(show(args.data_dir, args.source, args.split, args.index, args.out, args.root))
    return 0


def _counting(args: argparse.Namespace) -> Counting:
    from elva_jax.tools.datasets.build.prepare import Counting

    if args.edge < args.patch_size:
        raise ConfigError(
            f"--edge {args.edge}: must hold at least one patch of {args.patch_size} pixels (--patch-size)"
        )
    return Counting(args.frames, args.edge, args.patch_size, args.tokenizer)
