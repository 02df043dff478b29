"""The sub-commands of `elva convert`: import, export, and a comparison that shows they agree."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from elva_jax.commands import flags
from elva_jax.errors import ConfigError
from elva_jax.utils import numbers

HELP = """\
Imports weights from Hugging Face, exports a run to transformers, and compares two models.

examples:
  elva convert import Qwen/Qwen2-1.5B-Instruct weights/qwen2-1.5b \\
    --config configs/elva.py:size=1_5b
  elva convert import runs/tiny runs/tiny-adapted --adapter adapters/notes
  elva convert export runs/tiny exported/tiny
  elva convert check runs/tiny exported/tiny --video clip.mp4 --prompt "What moves?\""""

IMPORT_HELP = """\
Reads a Hugging Face folder or hub name (Qwen2, Qwen2.5, Llama, an exported ELVA; of vision towers
SigLIP, EVA-CLIP, DINOv2 with registers, ViViT, LanguageBind for video, Hiera for video) and writes
a checkpoint with its tokenizer for --config.init_from, --config.teacher.init_from,
--config.encoders.NAME.init_from, elva generate and elva convert check. SRC may be the folder of a
published MERV, with checkpoints/*.pt in it: it needs --allow-pickle and a --config, and its
encoders come from encoders.NAME.init_from. With --adapter, SRC may also be a run, and a LoRA
adapter of PEFT is put on it. Names, shapes and bytes are checked before anything is written."""

EXPORT_HELP = """\
Writes the ELVA of a run as a Hugging Face folder that loads with
AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True), without JAX or this package;
LoRA factors are merged. With --adapter-only, writes the factors alone, as an adapter for PEFT."""

CHECK_HELP = """\
Runs two models on the same text and video in float32, and prints the largest logit difference, the
KL divergence, and whether surviving tokens and greedy answers agree. Each model is a run, a
converted checkpoint, or a Hugging Face folder (ELVA, Qwen2, Llama, SigLIP). The exit status is 1 if
anything is beyond the tolerance."""


DTYPES = ("keep", "float32", "bfloat16", "float16")  # an export cannot keep the run's


def register(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds `convert` and its actions with `command(name, text, run, under, summary)`."""
    actions = command("convert", HELP, None).add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    summary = "write a Hugging Face folder as a checkpoint for JAX"
    _add_import(command("import", IMPORT_HELP, _import, actions, summary))
    summary = "write a run as a folder for transformers"
    _add_export(command("export", EXPORT_HELP, _export, actions, summary))
    summary = "compare two models on the same text and video"
    _add_check(command("check", CHECK_HELP, _check, actions, summary))


def _add_import(parser: argparse.ArgumentParser) -> None:
    text = "a folder with config.json and safetensors files, or a hub name"
    parser.add_argument("source", metavar="SRC", help=text)
    text, kind = "a folder that does not exist yet, or is empty", flags.output_folder("DST")
    parser.add_argument("out", type=kind, metavar="DST", help=text)
    text = "the run's configuration, which the weights must fit (default: as config.json says)"
    parser.add_argument("--config", metavar="FILE.py[:ARG]", help=text)
    text = "change a value of the config; may be given several times"
    parser.add_argument("--config.KEY=VALUE", dest="_", metavar="", help=text)
    text = "dtype of the weights on disk (default: %(default)s)"
    parser.add_argument("--dtype", choices=DTYPES, default="keep", help=text)
    text = "a LoRA adapter of PEFT (folder or hub name) to put on SRC"
    parser.add_argument("--adapter", metavar="DIR", help=text)
    text = "read .bin and .pt files, with torch.load(weights_only=True)"
    parser.add_argument("--allow-pickle", action="store_true", help=text)


def _add_export(parser: argparse.ArgumentParser) -> None:
    text = "a run's --workdir, one stage in it, or one saved step"
    parser.add_argument("run_dir", metavar="RUN", help=text)
    text, kind = "a folder that does not exist yet, or is empty", flags.output_folder("DIR")
    parser.add_argument("out", type=kind, metavar="DIR", help=text)
    text = "dtype of the weights (default: float32; of an adapter: as saved)"
    parser.add_argument("--dtype", choices=DTYPES[1:], help=text)
    text = "write the LoRA factors alone, as an adapter for PEFT"
    parser.add_argument("--adapter-only", action="store_true", help=text)


def _add_check(parser: argparse.ArgumentParser) -> None:
    text = "a run, a converted checkpoint, or a Hugging Face folder"
    parser.add_argument("a", metavar="A", help=text)
    parser.add_argument("b", metavar="B", help="another one")
    text = "a video, an image, or a folder of frames (default: a few synthetic frames)"
    parser.add_argument("--video", metavar="FILE", help=text)
    text = "the question, or the text that a language model reads"
    parser.add_argument("--prompt", metavar="TEXT", help=text)
    text = "largest difference that passes (default: %(default)s)"
    parser.add_argument("--tolerance", type=numbers.real(0), default=1e-4, metavar="X", help=text)
    text = "length of the greedy answers (default: %(default)s)"
    parser.add_argument("--max-new-tokens", type=numbers.TOKENS, default=64, metavar="N", help=text)
    flags.add_no_merging(parser)
    text = "let a folder run Python files that this version of elva_jax did not write"
    parser.add_argument("--trust-remote-code", action="store_true", help=text)


def _import(args: argparse.Namespace, overrides: list[str]) -> int:
    from elva_jax.config.load import load
    from elva_jax.hf import import_checkpoint

    if overrides and not args.config:
        raise ConfigError(f"{overrides[0]}: there is no config to change; give --config FILE.py")
    config = load(args.config, overrides) if args.config else None
    done = import_checkpoint.import_weights(
        args.source,
        args.out,
        config,
        dtype=args.dtype,
        allow_pickle=args.allow_pickle,
        adapter=args.adapter,
    )
    absent = f"; not in it, to be initialized by training: {', '.join(done.absent)}"
    print(
        f"{args.out}: {done.parameters:,} parameters in {done.dtype} from {args.source}"
        f" ({done.origin}){absent if done.absent else ''}"
    )
    peak = import_checkpoint.peak_memory()
    print(
        f"peak resident memory {peak / 1e9:.2f} GB, {peak / done.nbytes:.2f} times the"
        f" {done.nbytes / 1e9:.2f} GB of the source"
    )
    return 0


def _export(args: argparse.Namespace, _: list[str]) -> int:
    from elva_jax.hf.adapter import export_adapter
    from elva_jax.hf.decoder import DECODERS
    from elva_jax.hf.export import export

    if args.adapter_only:
        export_adapter(args.run_dir, args.out, dtype=args.dtype)
    elif (kind := export(args.run_dir, args.out, dtype=args.dtype or "float32")) in DECODERS:
        print(f"the decoder alone, as a {kind}: transformers has no MERV")
    print(args.out)
    return 0


def _check(args: argparse.Namespace, _: list[str]) -> int:
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
