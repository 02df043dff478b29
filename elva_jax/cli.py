"""The console command `elva`: one sub-command a task, each a thin door to a module of its own."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from elva_jax import __version__
from elva_jax.bench import command as bench
from elva_jax.convert import command as convert
from elva_jax.errors import ConfigError, ElvaError

TRAIN_HELP = """\
Runs the curriculum of a config, stage by stage; started again with the same --workdir it goes on where it stopped.

examples:
  elva train --config configs/tiny.py --workdir runs/tiny
  elva train --config configs/tiny.py:long --workdir runs/long --config.stages.video.steps=8000
  elva train --config configs/elva.py:size=7b,stage=2 --workdir /mnt/runs/7b-stage2 --config.init_from=/mnt/runs/7b-stage1

Every key is listed with its meaning in elva_jax/config/base.py; --print-config shows the values of a config."""

EVALUATE_HELP = """\
Measures a checkpoint on a split of a data set: exact match on open questions and multiple choice by likelihood,
family by family, beside the blind, any-object and single-frame baselines.

example:
  elva evaluate --checkpoint runs/tiny --split test --json runs/tiny/test.json"""

GENERATE_HELP = """\
Answers a question about a video, an image or a folder of frames.

examples:
  elva generate --checkpoint runs/tiny --video clip.mp4 --prompt "What colour is the circle?"
  elva generate --checkpoint runs/7b --video film.mp4 --prompt "What happens?" --high-frames 32 --low-frames 32 --low-edge 336

Any of the --high-… and --low-… options turns hybrid resolution on: frames of two sizes, sampled uniformly in time."""

DATA_HELP = """\
Builds data sets and looks into them.

examples:
  elva data build moving_shapes/easy --data-dir .data
  elva data show moving_shapes/easy --split test --index 3 --out /tmp/record"""


def main(argv: list[str] | None = None) -> int:
    """Runs one sub-command and returns the exit status: 0 done, 1 failed with a message, 2 misused, 130 interrupted."""
    # Notices of libraries that are no news to a user: no PyTorch here, a checkpoint opened for reading only.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    logging.getLogger("absl").setLevel(logging.ERROR)
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and args.run is not _train:
        args.parser.error(f"unrecognised option: {rest[0]}")
    try:
        return args.run(args, rest) or 0
    except ElvaError as error:
        print(f"elva {args.command}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        print(f"elva {args.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`elva … | head`); keep the interpreter from complaining about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="elva", description="ELVA, an encoder-free Video-LLM, in JAX.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"elva_jax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str, text: str, run, under=commands) -> argparse.ArgumentParser:
        raw = argparse.RawDescriptionHelpFormatter
        sub = under.add_parser(name, help=summary, description=text, formatter_class=raw, allow_abbrev=False)
        sub.set_defaults(run=run, parser=sub)
        return sub

    train = command("train", "train a model through the stages of a config", TRAIN_HELP, _train)
    train.add_argument("--config", required=True, metavar="FILE.py[:ARG]", help="config file, and the string for its get_config")
    train.add_argument("--workdir", metavar="DIR", help="where checkpoints, metrics and curves go")
    train.add_argument("--print-config", action="store_true", help="show the resolved config and stop")
    train.add_argument("--config.KEY=VALUE", dest="_", metavar="", help="change a value of the config, as often as needed")

    evaluate = command("evaluate", "measure a checkpoint on held-out videos", EVALUATE_HELP, _evaluate)
    _checkpoint_option(evaluate)
    evaluate.add_argument("--data", default="moving_shapes/easy", metavar="NAME", help="data set (default: %(default)s)")
    evaluate.add_argument("--data-dir", metavar="DIR", help="where data sets are built (default: the run's)")
    evaluate.add_argument("--split", default="test", help="split of the data set (default: %(default)s)")
    evaluate.add_argument("--limit", type=_positive, metavar="N", help="use the first N videos only")
    _frames_options(evaluate)
    evaluate.add_argument("--no-merging", dest="merging", action="store_false", help="leave token merging off")
    evaluate.add_argument("--no-baselines", dest="baselines", action="store_false", help="skip the three baselines")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here")
    evaluate.add_argument("--figure", type=Path, metavar="FILE.png", help="draw accuracy per family here")

    generate = command("generate", "answer a question about a video", GENERATE_HELP, _generate)
    _checkpoint_option(generate)
    generate.add_argument("--video", required=True, metavar="FILE", help="a video, an image, or a folder of frames")
    generate.add_argument("--prompt", required=True, metavar="TEXT", help="the question")
    _frames_options(generate)
    generate.add_argument("--max-new-tokens", type=_positive, default=64, metavar="N", help="longest answer (default: %(default)s)")
    generate.add_argument("--no-merging", dest="merging", action="store_false", help="leave token merging off")

    convert.register(command)
    bench.register(command)

    data = command("data", "build data sets", DATA_HELP, None)
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = actions.add_parser("build", help="build a data set, and its tokenizer if there is none", allow_abbrev=False)
    build.set_defaults(run=_data_build, parser=build)
    build.add_argument("name", choices=["moving_shapes/easy", "moving_shapes/hard"], help="which one")
    build.add_argument("--data-dir", default=".data", metavar="DIR", help="where to (default: %(default)s)")
    show = actions.add_parser("show", help="write one record to a folder: medium, frames, annotation", allow_abbrev=False)
    show.set_defaults(run=_data_show, parser=show)
    show.add_argument("name", help="data set, such as moving_shapes/easy")
    show.add_argument("--split", default="test", help="split of it (default: %(default)s)")
    show.add_argument("--index", type=int, default=0, metavar="I", help="which record (default: %(default)s)")
    show.add_argument("--data-dir", default=".data", metavar="DIR", help="where data sets are built (default: %(default)s)")
    show.add_argument("--out", required=True, metavar="DIR", help="folder to write to")
    return parser


def _checkpoint_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint", required=True, metavar="DIR", help="a run's --workdir, one stage in it, one saved step, or an exported folder"
    )


def _frames_options(parser: argparse.ArgumentParser) -> None:
    """How a video is sampled; those of hybrid resolution are named as the fields of `video.resolution.Hybrid`."""
    parser.add_argument("--frames", type=_positive, metavar="N", help="frames sampled from a video (default: the last stage's)")
    parser.add_argument("--high-frames", type=_count, metavar="N", help="hybrid resolution: frames at high resolution (default: 32)")
    parser.add_argument("--low-frames", type=_count, metavar="N", help="frames at low resolution beside them (default: 32)")
    parser.add_argument("--high-edge", type=_positive, metavar="PX", help="longest edge of the high ones (default: the last stage's)")
    parser.add_argument("--low-edge", type=_positive, metavar="PX", help="of the low ones (default: 336, at most half of the high one)")
    text = "which frames are high: evenly spread (the default), those at both ends, or those that change most"
    parser.add_argument("--high-policy", dest="policy", choices=("interleave", "ends", "scene"), help=text)


def _hybrid(args: argparse.Namespace) -> dict[str, int | str]:
    """The settings of hybrid resolution that were given."""
    names = ("high_frames", "low_frames", "high_edge", "low_edge", "policy")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if given and args.frames:
        args.parser.error("--frames does not go together with hybrid resolution: give --high-frames and --low-frames instead")
    return given


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"cannot be negative, got {value}")
    return value


def _train(args: argparse.Namespace, overrides: list[str]) -> int:
    from elva_jax.config.load import load

    config = load(args.config, overrides)
    if args.print_config:
        print(config)
        return 0
    if not args.workdir:
        args.parser.error("the following arguments are required: --workdir")
    from elva_jax.training import curriculum

    return curriculum.run(config, args.workdir)


def _evaluate(args: argparse.Namespace, _) -> int:
    from elva_jax.evaluation import report, run

    hybrid = _hybrid(args)
    result = run.evaluate(
        args.checkpoint,
        data_dir=args.data_dir,
        name=args.data,
        split=args.split,
        merging=args.merging,
        limit=args.limit,
        baselines=args.baselines,
        num_frames=args.frames,
        hybrid=hybrid,
    )
    report.table(result)
    if args.json:
        report.save(result, args.json)
    if args.figure:
        report.figure(result, args.figure)
    return 0


def _generate(args: argparse.Namespace, _) -> int:
    from elva_jax.inference.generate import Generator
    from elva_jax.video.resolution import complete

    given = _hybrid(args)
    generator = Generator.from_checkpoint(args.checkpoint)
    hybrid = complete(generator.data.longest_edge, generator.model.patch.patch_size, **given)
    options = {"max_new_tokens": args.max_new_tokens, "merging": args.merging, "num_frames": args.frames, "hybrid": hybrid}
    print(generator.answer(args.video, args.prompt, **options))
    return 0


def _data_build(args: argparse.Namespace, _) -> int:
    from elva_jax.data import tokenizer
    from elva_jax.data.moving_shapes import builder

    print(builder.build(args.data_dir, args.name.partition("/")[2]).data_dir)
    folder = Path(args.data_dir) / "tokenizer"
    if not folder.exists():
        tokenizer.build_for_moving_shapes(folder)
    print(folder)
    return 0


def _data_show(args: argparse.Namespace, _) -> int:
    from elva_jax.data.show import show

    print(show(args.data_dir, args.name, args.split, args.index, args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
