"""`elva plan --inference`: whether a model that answers fits into a card."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from elva_jax.commands import flags
from elva_jax.tools.bench.table import text_table
from elva_jax.tools.plan.hardware import GIB, USABLE
from elva_jax.utils import numbers
from elva_jax.utils.json import save_json

if TYPE_CHECKING:
    from elva_jax.config.schema import Config
    from elva_jax.tools.plan.inference_case import Case

CARDS = (24.0, 16.0, 12.0)  # GiB
PARTS = ("weights", "prefix", "suffix", "activations", "total")
NAMES = ("weights", "prefix cache", "suffix cache", "activations", "together")


def add_inference(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `run` reads."""
    group = parser.add_argument_group("answering instead of training")
    add = group.add_argument
    text = "plan a model that answers questions about a video, on one card"
    add("--inference", action="store_true", help=text)
    text = "in place of --config: a run, a saved step or an exported folder"
    add("--checkpoint", metavar="DIR", help=text)
    flags.add_frames(group)
    text = "longest edge of the frames (default: as in the last stage)"
    add("--edge", type=numbers.EDGE, metavar="PX", help=text)
    text = "videos that are asked together, a question each (default: %(default)s)"
    add("--batch", type=numbers.ROWS, default=1, metavar="N", help=text)
    text = "plan these weights only (default: all three)"
    add("--weights", choices=("bfloat16", "int8", "int4"), help=text)
    text = "memory of the cards in GiB (default: 24,16,12)"
    add("--memory", type=memories, default=CARDS, metavar="GIB,…", help=text)
    text = "longest answer (default: %(default)s)"
    add("--max-new-tokens", type=numbers.TOKENS, default=512, metavar="N", help=text)
    text = "share of the mergeable tokens that each merging layer leaves (default: its ratio; 1"
    text += " where a threshold alone decides)"
    add("--kept", type=shares, metavar="R,…", help=text)
    flags.add_no_merging(group)


def memories(text: str) -> tuple[float, ...]:
    """Positive numbers separated by commas; for `type=` of an option."""
    return tuple(numbers.POSITIVE(part) for part in text.split(","))


def shares(text: str) -> tuple[float, ...]:
    """Numbers in (0, 1] separated by commas; for `type=` of an option."""
    return tuple(numbers.SHARE(part) for part in text.split(","))


def run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Prints the plan; the exit status is 1 if nothing of what was asked fits one of the cards.

    Raises:
      ConfigError: a config that cannot work, or frames without a patch.
      CheckpointError: no such checkpoint.
      ConvertError: a folder without an ELVA.
    """
    cases = _cases(args, overrides)
    report = plan(cases, args.memory) | {"model": args.checkpoint or args.config}
    print(show(report))
    if args.json:
        save_json(report, args.json)
    fitting = [any(row["fits"][n] for row in report["weights"]) for n in range(len(args.memory))]
    return 0 if all(fitting) else 1


def plan(cases: Sequence[Case], memory: Sequence[float]) -> dict[str, Any]:
    """Needs of the same questions with several kinds of weights, on cards of `memory` GiB each."""
    from elva_jax.tools.plan.inference import memory_of
    from elva_jax.tools.plan.inference_advice import advice, most_frames

    cards = [{"memory": size, "usable": USABLE * size * GIB} for size in memory]
    rows = []
    for case in cases:
        taken = memory_of(case)
        fits = [taken.total <= card["usable"] for card in cards]
        rows.append(
            {
                "weights": case.weights,
                "memory": taken.to_dict(),
                "fits": fits,
                "most_frames": [most_frames(case, taken, card["usable"]) for card in cards],
                "advice": [
                    [] if fit else advice(case, taken, card["usable"])
                    for card, fit in zip(cards, fits, strict=True)
                ],
            }
        )
    case = cases[0]
    return {
        "case": {
            "frames": len(case.clip.grids),
            "edge": case.edge,
            "hybrid": dataclasses.asdict(case.hybrid) if case.hybrid else None,
            "batch": case.batch,
            "tokens": case.tokens,
            "max_position": case.model.max_position,
            "blocks": [{"layers": layers, "tokens": tokens} for layers, tokens in case.blocks],
            "max_new_tokens": case.max_new_tokens,
        },
        "cards": cards,
        "weights": rows,
    }


def show(report: dict[str, Any]) -> str:
    """Formats the report: a table of memory, one of cards, and what to change."""
    case, cards, rows = report["case"], report["cards"], report["weights"]
    size = f"{case['edge']} px"
    if hybrid := case["hybrid"]:
        size = f"{hybrid['high_edge']} px ({hybrid['high_frames']}) and {hybrid['low_edge']} px"
    blocks = ", ".join(f"{b['layers']} layers of {b['tokens']:,}" for b in case["blocks"])
    out = [
        f"{report['model']}: {case['batch']} video(s) of {case['frames']} frames, {size};"
        f" {case['tokens']:,} tokens with question and answer\ncaches: {blocks} tokens"
    ]
    if case["tokens"] > case["max_position"]:
        out.append(f"longer than the model's {case['max_position']:,} tokens: RoPE is scaled")
    table = [
        [row["weights"], *(f"{row['memory'][part] / GIB:.2f}" for part in PARTS)] for row in rows
    ]
    out += ["Memory of the card, GiB", text_table(("", *NAMES), table)]
    table = [[row["weights"], *map(_verdict, row["fits"], row["most_frames"])] for row in rows]
    names = [f"{card['memory']:g} GiB, {card['usable'] / GIB:.2f} usable" for card in cards]
    out.append(text_table(("", *names), table))
    lines = [
        f"{row['weights']} on {card['memory']:g} GiB: {line}"
        for row in rows
        for card, changes in zip(cards, row["advice"], strict=True)
        for line in changes
    ]
    return "\n\n".join([*out, *(["\n".join(lines)] if lines else [])])


def _verdict(fits: bool, frames: int) -> str:  # noqa: FBT001 (a column of a table)
    room = f"about {frames:,} frames fit" if frames else "no frame fits"
    return f"yes; {room}" if fits else f"NO; {room}"


def _cases(args: argparse.Namespace, overrides: Sequence[str]) -> list[Case]:
    """The cases that the options describe, one for each kind of weights."""
    from elva_jax.inference.prompts import elva_stage
    from elva_jax.tools.plan.inference_case import Case, shares_kept
    from elva_jax.video.hybrid import complete

    config = _config(args, overrides)
    data = config.stages[elva_stage(config)].data
    given = flags.hybrid_settings(args)
    edge = args.edge or data.longest_edge
    hybrid = complete(edge, config.model.patch_size, **given) if given else None
    model = config.model
    if args.weights == "bfloat16":
        model = dataclasses.replace(model, dtype="bfloat16")
    case = Case(
        model=model,
        weights=model.dtype,
        frames=hybrid.frames if hybrid else args.frames or data.num_frames,
        edge=edge,
        hybrid=hybrid,
        batch=args.batch,
        merging=args.merging,
        kept=shares_kept(model, args.kept),
        max_new_tokens=args.max_new_tokens,
    )
    chosen = (model.dtype, "int8", "int4") if args.weights is None else (args.weights,)
    return [dataclasses.replace(case, weights=weights) for weights in chosen]


def _config(args: argparse.Namespace, overrides: Sequence[str]) -> Config:
    from elva_jax.checkpoints.restore import open_run
    from elva_jax.config.load import load, resolve
    from elva_jax.hf.load import is_hf_source
    from elva_jax.hf.open_model import folder_config
    from elva_jax.hf.tensor_store import open_store

    if args.checkpoint is None:
        return resolve(load(args.config, overrides))
    if is_hf_source(args.checkpoint):
        return folder_config(open_store(args.checkpoint))[0]
    return open_run(args.checkpoint).config
