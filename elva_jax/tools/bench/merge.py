"""`elva bench merge`: the cost of a merging layer as a share of a decoder layer."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from elva_jax.tools.bench.arguments import add_dtype, add_repeats, counts, dtype_of
from elva_jax.tools.bench.table import text_table
from elva_jax.tools.bench.timing import interleaved, machine, milliseconds

HELP = """\
Times one merging layer and one decoder layer on the same tokens of a video, interleaved in one
process.

examples:
  elva bench merge
  elva bench merge --config configs/elva.py:size=7b --tokens 5000,20000"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this bench."""
    add, config = parser.add_argument, "configs/elva.py:size=1_5b"
    text = "the model (default: %(default)s)"
    add("--config", default=config, metavar="FILE.py[:ARG]", help=text)
    text = "tokens of the video (default: %(default)s)"
    add("--tokens", type=counts, default="5000", metavar="S,S,…", help=text)
    add_dtype(parser)
    add_repeats(parser, 5)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Times both layers at every length."""
    import dataclasses

    import jax
    import jax.numpy as jnp

    from elva_jax.config.load import load, resolve
    from elva_jax.inference import prefill
    from elva_jax.inference.batching import build_rows
    from elva_jax.models.elva import merging_of, with_merging
    from elva_jax.tools.bench.random_model import random_patches, random_weights
    from elva_jax.video.layout import Clip, frame_tokens

    dtype = dtype_of(args)
    model = resolve(load(args.config)).model
    merging = merging_of(model)
    rule = next((rule for rule in merging.layers if rule.policy == "both"), merging.layers[0])
    first = dataclasses.replace(rule, before_layer=0)
    model = dataclasses.replace(
        with_merging(model, dataclasses.replace(merging, layers=(first,))),
        num_layers=1,
        vocab_size=1024,
        dtype=dtype,
        remat="none",
    )
    weights = random_weights(model)
    grid, rows = (12, 12), []
    for tokens in args.tokens:
        grids = (grid,) * max(1, round(tokens / frame_tokens(*grid)))
        patches = random_patches(grids, model.patch_size**2 * 3, "typical")
        unpadded: Any = lambda name, n, smallest=1: n  # noqa: E731 (typed as a protocol)
        built = build_rows([(Clip(grids),)], [patches], patches.shape[1], unpadded)
        layout = jax.tree.map(jnp.asarray, built.layout)
        x = jax.random.normal(jax.random.key(0), (1, layout.length, model.hidden_size), dtype)
        inputs = prefill.layer_inputs(model, layout, built.stretch)
        size = jnp.ones((1, layout.length), jnp.float32)
        layer = jax.jit(partial(prefill.apply_layer, model))
        runs = {
            "merge": partial(prefill._merge, model, x, layout, size, 0),
            "layer": partial(layer, weights.layers[0], x, inputs),
        }
        seconds = interleaved(runs, args.repeats)
        rows.append({"tokens": layout.length, "seconds": seconds})
    return {
        "machine": machine(),
        "dtype": dtype,
        "config": args.config,
        "policy": rule.policy,
        "rows": rows,
    }


def show(report: dict[str, Any]) -> str:
    """Formats the report."""
    rows = []
    for row in report["rows"]:
        merge, layer = (row["seconds"][name] for name in ("merge", "layer"))
        share = f"{100 * merge['median'] / layer['median']:.1f}"
        rows.append([f"{row['tokens']:,}", milliseconds(merge), milliseconds(layer), share])
    settings = f"{report['dtype']}, {report['config']}, policy {report['policy']}"
    columns = ["tokens", "merging layer ms", "decoder layer ms", "share %"]
    return f"{report['machine']['device']}, {settings}\n{text_table(columns, rows, words=0)}"
