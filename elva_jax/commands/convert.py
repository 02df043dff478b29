"""The sub-commands of `elva convert`: weights in and out, and the proof that they are the same."""

from __future__ import annotations

import argparse
from collections.abc import Callable

HELP = """\
Takes weights in from Hugging Face and out to transformers, and compares two models.

examples:
  elva convert import Qwen/Qwen2-1.5B-Instruct checkpoints/qwen2-1.5b --config configs/elva.py:size=1_5b
  elva convert export runs/tiny exported/tiny
  elva convert check runs/tiny exported/tiny --video clip.mp4 --prompt "What colour is the circle?\""""

IMPORT_HELP = """\
Reads a Hugging Face folder or hub name (Qwen2, Qwen2.5, Llama, an exported ELVA, SigLIP, EVA-CLIP) and writes a checkpoint with its
tokenizer for --config.init_from, --config.teacher.init_from, elva generate and elva convert check.
Names, shapes and bytes are checked before anything is written."""

EXPORT_HELP = """\
Writes the ELVA of a run as a Hugging Face folder that loads with
AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True), without JAX and without this package."""

CHECK_HELP = """\
Runs two models on the same text and video in float32, and prints the largest logit difference, the KL divergence, and whether
surviving tokens and greedy answers agree. Each is a run, a converted checkpoint, or a Hugging Face folder (ELVA, Qwen2, Llama, SigLIP).
The exit status is 1 where anything is beyond the tolerance."""


def register(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds `convert` with `command(name, summary, text, run, under)`, which makes a sub-command of `elva`, or of another one."""
    actions = command("convert", "weights from and to Hugging Face", HELP, None).add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )

    take = command(
        "import",
        "write a Hugging Face folder as a checkpoint of ours",
        IMPORT_HELP,
        _import,
        actions,
    )
    take.add_argument(
        "source",
        metavar="SRC",
        help="a folder with config.json and safetensors files, or a hub name",
    )
    take.add_argument("out", metavar="DST", help="a folder that does not exist yet, or is empty")
    take.add_argument(
        "--config",
        metavar="FILE.py[:ARG]",
        help="the run that it is for, which it must fit (default: as config.json says)",
    )
    take.add_argument(
        "--dtype",
        choices=["keep", "float32", "bfloat16", "float16"],
        default="keep",
        help="of the weights on disk (default: %(default)s)",
    )
    take.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read .bin and .pt files, with torch.load(weights_only=True)",
    )

    export = command(
        "export", "write a run as a folder for transformers", EXPORT_HELP, _export, actions
    )
    export.add_argument(
        "run_dir", metavar="RUN", help="a run's --workdir, one stage in it, or one saved step"
    )
    export.add_argument("out", metavar="DIR", help="a folder that does not exist yet, or is empty")
    export.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16"],
        default="float32",
        help="of the weights (default: %(default)s)",
    )

    check = command(
        "check", "compare two models on the same text and video", CHECK_HELP, _check, actions
    )
    check.add_argument(
        "a", metavar="A", help="a run, a converted checkpoint, or a Hugging Face folder"
    )
    check.add_argument("b", metavar="B", help="another one")
    check.add_argument(
        "--video",
        metavar="FILE",
        help="a video, an image, or a folder of frames (default: a few frames made up)",
    )
    check.add_argument(
        "--prompt", metavar="TEXT", help="the question, or the text that a language model reads"
    )
    check.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        metavar="X",
        help="largest difference that passes (default: %(default)s)",
    )
    check.add_argument(
        "--max-new-tokens",
        type=int,
        default=64,
        metavar="N",
        help="length of the greedy answers (default: %(default)s)",
    )
    check.add_argument(
        "--no-merging", dest="merging", action="store_false", help="leave token merging off"
    )
    check.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="let a folder run Python files that this version of elva_jax did not write",
    )


def _import(args: argparse.Namespace, _) -> int:
    from elva_jax.config.load import load
    from elva_jax.hf.import_checkpoint import import_weights, peak_memory

    config = load(args.config) if args.config else None
    done = import_weights(
        args.source, args.out, config, dtype=args.dtype, allow_pickle=args.allow_pickle
    )
    absent = (
        f"; not in it, to be initialised by training: {', '.join(done.absent)}"
        if done.absent
        else ""
    )
    print(
        f"{args.out}: {done.parameters:,} parameters in {done.dtype} from {args.source} ({done.origin}){absent}"
    )
    peak = peak_memory()
    print(
        f"peak resident memory {peak / 1e9:.2f} GB, {peak / done.nbytes:.2f} times the {done.nbytes / 1e9:.2f} GB of the source"
    )
    return 0


def _export(args: argparse.Namespace, _) -> int:
    from elva_jax.hf.export import export

    export(args.run_dir, args.out, dtype=args.dtype)
    print(args.out)
    return 0


def _check(args: argparse.Namespace, _) -> int:
    from transformers.utils import logging

    from elva_jax.evaluation.compare import PROMPT, check

    logging.disable_progress_bar()
    report = check(
        args.a,
        args.b,
        video=args.video,
        prompt=args.prompt or PROMPT,
        tolerance=args.tolerance,
        new_tokens=args.max_new_tokens,
        merging=args.merging,
        trust_remote_code=args.trust_remote_code,
    )
    print("\n".join((*report.lines, "the same" if report.same else "NOT the same")))
    return 0 if report.same else 1
