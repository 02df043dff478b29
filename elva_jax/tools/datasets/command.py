"""`elva data`: its options and its output."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from elva_jax.commands import flags
from elva_jax.errors import ConfigError, DataError, ElvaError
from elva_jax.utils import numbers, signals

if TYPE_CHECKING:
    from elva_jax.data.example import Example
    from elva_jax.tools.datasets.build.plan import Plan
    from elva_jax.tools.datasets.build.prepare import TokenSettings

HELP = """\
Builds data sets and shows their contents. A SOURCE is anything that a config's mixture can name:
a LLaVA .json or .jsonl, a WebVid .csv, WebDataset .tar shards, a Hugging Face folder (hf:FOLDER),
or a built data set. Details are in docs/data.md.

examples:
  elva data build moving_shapes/easy --data-dir .data
  elva data build my/notes.json --root my/videos --name my_notes --longest-edge 448 --workers 8
  elva data inspect my/notes.json --root my/videos --out /tmp/notes
  elva data inspect my_notes --verify
  elva data show moving_shapes/easy --split test --index 3 --out /tmp/record
  elva data contents --out /tmp/contents --count 20"""

BUILD_HELP = """\
Converts a source into ArrayRecord files, which a config names as schema.source(NAME, SPLIT), with a
manifest of their contents. Started again, it continues where it stopped. moving_shapes/easy and
moving_shapes/hard are rendered and need no --name.

examples:
  elva data build moving_shapes/easy --data-dir .data
  elva data build my/notes.json --root my/videos --name my_notes
  elva data build 'web/clips-{000..099}.tar' --name clips --longest-edge 448 --shard 3/16"""

INSPECT_HELP = """\
Counts the records of a source or a built data set. --out also draws some frames with their text,
and a histogram of lengths in tokens. The numbers of a built data set come from its manifest,
unless options ask for others.

examples:
  elva data inspect my/notes.json --root my/videos --out /tmp/notes
  elva data inspect my_notes --split train --verify"""

SHOW_HELP = """\
Writes one record of a source or a built data set to a folder: its media, a sheet of their frames,
and its annotation.

examples:
  elva data show moving_shapes/easy --split test --index 3 --out /tmp/record
  elva data show my/notes.json --root my/videos --out /tmp/record"""

CONTENTS_HELP = """\
Renders clips of three kinds: shapes that move (motion), a word (text), and shapes that stay where
they are (static). `elva bench fusion` reads the folder.

example:
  elva data contents --out /tmp/contents --count 20"""

RENDERED = ("moving_shapes/easy", "moving_shapes/hard")


def register(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds `data` with `command(name, text, run, under, summary)`, which makes a sub-command."""
    parser = command("data", HELP, None)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    summary = "build a data set from a source (or moving_shapes and its tokenizer)"
    _add_build(command("build", BUILD_HELP, _build, actions, summary))
    summary = "count and draw the records of a source or a data set"
    _add_inspect(command("inspect", INSPECT_HELP, _inspect, actions, summary))
    summary = "write one record to a folder: media, frames, annotation"
    _add_show(command("show", SHOW_HELP, _show, actions, summary))
    summary = "render clips of motion, of text and of static pictures"
    _add_contents(command("contents", CONTENTS_HELP, _contents, actions, summary))


def _add_build(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _add_source(parser, split="train", about_split="split to build (default: %(default)s)")
    add("--name", metavar="NAME", help="of the data set: lower-case letters, digits and _")
    text = "split of a source that is a built data set (default: that of --split)"
    add("--source-split", metavar="SPLIT", help=text)
    text = "transcode media with a longer edge down to it"
    add(
        "--longest-edge",
        type=numbers.whole(0, numbers.MOST_PIXELS),
        default=0,
        metavar="PX",
        help=text,
    )
    text = "records of the source per file (default: %(default)s)"
    add("--shard-size", type=flags.positive, default=1000, metavar="N", help=text)
    text = "build part I (from 0) of the files on N hosts"
    add("--shard", type=flags.shard, default=(0, 1), metavar="I/N", help=text)
    text, cores = "processes (default: one per core)", os.cpu_count() or 1
    add("--workers", type=numbers.WORKERS, default=cores, metavar="N", help=text)
    _add_token_settings(parser)


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = "split of a built data set (default: %(default)s)"
    _add_source(parser, split="train", about_split=text)
    text = "count N records, evenly spread (default: 1000; 0: all)"
    add("--limit", type=flags.not_negative, metavar="N", help=text)
    text = "write statistics.json, sheet.png and tokens.png there"
    add("--out", type=flags.output_folder("--out"), metavar="DIR", help=text)
    text = "records on the sheet (default: %(default)s)"
    add("--examples", type=numbers.whole(1, 10_000), default=8, metavar="N", help=text)
    text = "only compare every file of a built data set with its checksum"
    add("--verify", action="store_true", help=text)
    _add_token_settings(parser)


def _add_show(parser: argparse.ArgumentParser) -> None:
    text = "split of a built data set (default: %(default)s)"
    _add_source(parser, split="test", about_split=text)
    text = "number of the record, from 0 (default: %(default)s)"
    parser.add_argument("--index", type=flags.not_negative, default=0, metavar="I", help=text)
    text, folder = "folder to write to", flags.output_folder("--out")
    parser.add_argument("--out", type=folder, required=True, metavar="DIR", help=text)


def _add_contents(parser: argparse.ArgumentParser) -> None:
    add, text = parser.add_argument, "folder to write to; a folder is made for each kind"
    add("--out", type=flags.output_folder("--out"), required=True, metavar="DIR", help=text)
    text = "clips of each kind (default: %(default)s)"
    add("--count", type=numbers.whole(1, 10_000), default=20, metavar="N", help=text)
    text = "seed of the scenes (default: %(default)s)"
    add("--seed", type=flags.not_negative, default=0, metavar="N", help=text)


def _add_source(parser: argparse.ArgumentParser, split: str, about_split: str) -> None:
    add = parser.add_argument
    add("source", metavar="SOURCE", help="file or data set")
    text = "folder of a file's media paths (default: the file's folder)"
    add("--root", default="", metavar="DIR", help=text)
    text = "folder of built data sets (default: %(default)s)"
    add("--data-dir", default=".data", metavar="DIR", help=text)
    add("--split", default=split, help=about_split)


def _add_token_settings(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("how tokens are counted").add_argument
    text = "a transformers tokenizer (default: text is not counted)"
    add("--tokenizer", default="", metavar="DIR", help=text)
    text = "most frames per video (default: %(default)s)"
    add("--frames", type=numbers.FRAMES, default=32, metavar="N", help=text)
    text = "their longest edge (default: %(default)s)"
    add("--edge", type=numbers.EDGE, default=448, metavar="PX", help=text)
    text = "edge of a patch (default: %(default)s)"
    add("--patch-size", type=numbers.EDGE, default=28, metavar="PX", help=text)


def _build(args: argparse.Namespace, _: list[str]) -> int:
    if args.name is None:
        return _render(args)
    from elva_jax.tools.datasets.build import manifest, run, start

    options = start.BuildOptions(
        source=args.source,
        name=args.name,
        data_dir=args.data_dir,
        split=args.split,
        source_split=args.source_split,
        root=args.root,
        longest_edge=args.longest_edge,
        shard_size=args.shard_size,
        token_settings=_token_settings(args),
    )
    plan, preparation = start.begin(options)
    try:
        run.run(plan, preparation, plan.of_host(*args.shard), args.workers)
    except KeyboardInterrupt as error:
        built = f"{plan.shards - len(manifest.missing(plan))} of {plan.shards} files are built"
        return signals.announce(error, f"; {built}, start again to continue")
    return _finish(plan)


def _finish(plan: Plan) -> int:
    """Makes a data set of the files if all are built, and prints the result."""
    from elva_jax.tools.datasets.build import manifest
    from elva_jax.tools.datasets.build.plan import ranges

    if left := manifest.missing(plan):
        built = f"{plan.shards - len(left)} of {plan.shards} files of '{plan.split}' are built"
        print(f"{plan.folder}: {built}; still missing: {ranges(left)}")
        return 0
    found = manifest.finish(plan)["statistics"]
    records = f"{found['records']:,} records in {plan.shards:,} files"
    size = f"{found['bytes'] / 2**30:.3f} GiB of media"
    print(f"{plan.folder}: {plan.split}: {records}, {size}")
    print(manifest.manifest_path(plan.folder, plan.split))
    if rejected := plan.records - found["records"]:
        reason, worst = next(iter(found["rejected"].items()))
        most = f"{rejected:,} rejected, {worst['records']:,} of them: {reason}"
        print(f"{manifest.rejected_path(plan.folder, plan.split)}: {most}")
    return 0


def _render(args: argparse.Namespace) -> int:
    """Builds moving_shapes, and its tokenizer."""
    if args.source not in RENDERED:
        if args.source.startswith("moving_shapes"):
            known = " and ".join(RENDERED)
            raise ConfigError(f"{args.source}: no such data set; there are {known}")
        args.parser.error("the following arguments are required: --name")
    from elva_jax.tools.datasets.moving_shapes import builder
    from elva_jax.tools.datasets.moving_shapes.tokenizer import build_for_moving_shapes

    print(builder.build(args.data_dir, args.source.partition("/")[2]).data_dir)
    folder = Path(args.data_dir) / "tokenizer"
    if not folder.exists():
        build_for_moving_shapes(folder)
    print(folder)
    return 0


def _inspect(args: argparse.Namespace, _: list[str]) -> int:
    from elva_jax.data.conversation import check_tokenizer
    from elva_jax.data.tokenizer import load as load_tokenizer
    from elva_jax.tools.datasets import inspect
    from elva_jax.tools.datasets.build import manifest, start
    from elva_jax.tools.progress import record_bar

    if args.verify:
        return _verify(args)
    examples = start.open_source(args.source, args.data_dir, args.split, args.root)
    settings = _token_settings(args)
    if settings.tokenizer:  # its faults are not those of the records
        check_tokenizer(load_tokenizer(settings.tokenizer))
    options = ("limit", "tokenizer", "frames", "edge", "patch_size")
    default = all(getattr(args, name) == args.parser.get_default(name) for name in options)
    folder = start.folder(args.source, args.data_dir)
    if default and (stored := manifest.statistics(folder, args.split)):
        statistics, settings = stored
    else:
        indices = inspect.spread(len(examples), 1000 if args.limit is None else args.limit)
        if len(indices) < len(examples):
            print(f"{len(indices):,} of {len(examples):,} records, evenly spread:")
        with record_bar(args.source, len(indices)) as advance:
            statistics = inspect.count(examples, settings, indices, advance)
    print(inspect.table(statistics, settings))
    if args.out:
        shown = _readable(examples, args.examples)
        for path in inspect.write(args.out, args.source, statistics, settings, shown):
            print(path)
    if statistics.rejected and not statistics.records:
        raise DataError(f"{args.source}: none of {statistics.rejected.total():,} records is usable")
    return 0


def _verify(args: argparse.Namespace) -> int:
    """Compares the files of a built data set with their checksums."""
    from elva_jax.tools.datasets.build import manifest, start

    total = intact = 0
    for file, damage in manifest.verify(start.folder(args.source, args.data_dir), args.split):
        total += 1
        intact += not damage
        if damage:
            print(f"{file}: {damage}")
    print(f"{intact} of {total} files are as they were built")
    return 0 if intact == total else 1


def _readable(examples: Sequence[Example], number: int) -> list[Example]:
    """Up to `number` evenly spread examples, without those that cannot be read."""
    from elva_jax.tools.datasets.inspect import spread

    found = []
    for index in spread(len(examples), number):
        try:
            found.append(examples[index])
        except ElvaError:
            continue
    return found


def _show(args: argparse.Namespace, _: list[str]) -> int:
    from elva_jax.tools.datasets.show import show

    print(show(args.data_dir, args.source, args.split, args.index, args.out, args.root))
    return 0


def _contents(args: argparse.Namespace, _: list[str]) -> int:
    from elva_jax.tools.datasets.moving_shapes import contents

    files = contents.write(Path(args.out), args.count, seed=args.seed)
    for group, written in files.items():
        print(f"{Path(args.out) / group}: {len(written)} clips")
    return 0


def _token_settings(args: argparse.Namespace) -> TokenSettings:
    from elva_jax.tools.datasets.build.prepare import TokenSettings

    if args.edge < args.patch_size:
        rule = f"must hold at least one patch of {args.patch_size} pixels (--patch-size)"
        raise ConfigError(f"--edge {args.edge}: {rule}")
    return TokenSettings(
        frames=args.frames,
        longest_edge=args.edge,
        patch_size=args.patch_size,
        tokenizer=args.tokenizer,
    )
