"""`elva bench attention`: time and memory of causal attention, beside PyTorch's."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from elva_jax.tools.bench.arguments import add_dtype, add_repeats, counts, dtype_of
from elva_jax.tools.bench.table import text_table
from elva_jax.tools.bench.timing import Spread, interleaved, machine, milliseconds
from elva_jax.utils import numbers

HELP = """\
Times causal attention (forward, one sequence) as in prefill, beside scaled_dot_product_attention
if PyTorch is installed, interleaved in one process. Memory is what XLA allocates for the compiled
program beyond its inputs and its result.

examples:
  elva bench attention
  elva bench attention --lengths 1024,5120 --dtype bfloat16 --heads 28 --kv-heads 4"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this bench."""
    add, text = parser.add_argument, "tokens (default: %(default)s)"
    add("--lengths", type=counts, default="1024,2560,5120", metavar="S,S,…", help=text)
    add(
        "--heads",
        type=numbers.whole(1, 65_536),
        default=12,
        help="query heads (default: %(default)s)",
    )
    add(
        "--kv-heads",
        type=numbers.whole(1, 65_536),
        default=2,
        help="key and value heads (default: %(default)s)",
    )
    add(
        "--head-dim",
        type=numbers.whole(1, 65_536),
        default=128,
        help="width of a head (default: %(default)s)",
    )
    add_dtype(parser)
    add_repeats(parser, 5)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Times attention at every length."""
    import jax
    import numpy as np

    from elva_jax.ops.attention import choose_implementation, packed_attention

    dtype = dtype_of(args)
    heads = (args.heads, args.kv_heads, args.kv_heads)
    rows = []
    for length in args.lengths:
        rng = np.random.default_rng(0)
        shapes = [(1, length, count, args.head_dim) for count in heads]
        q, k, v = (jax.numpy.asarray(rng.normal(size=shape), dtype) for shape in shapes)
        segment = jax.numpy.ones((1, length), jax.numpy.int32)
        compiled = jax.jit(partial(packed_attention, single=True)).lower(q, k, v, segment).compile()
        memory: Any = compiled.memory_analysis()
        runs = {"ours": partial(compiled, q, k, v, segment)} | _torch(q, k, v, dtype)
        rows.append(
            {
                "length": length,
                "implementation": choose_implementation(args.head_dim, dtype).name,
                "seconds": interleaved(runs, args.repeats),
                "temporary_bytes": memory.temp_size_in_bytes,
                "square_bytes": args.heads * length * length * 4,
            }
        )
    shape = [args.heads, args.kv_heads, args.head_dim]
    return {"machine": machine(), "dtype": dtype, "heads": shape, "rows": rows}


def _torch(q, k, v, dtype: str) -> dict[str, Any]:
    """PyTorch's attention on the same inputs and the same kind of device, if it is installed."""
    import jax
    import numpy as np

    try:
        import torch
    except ImportError:
        return {}
    on_gpu = jax.default_backend() == "gpu"
    if on_gpu and not torch.cuda.is_available():
        return {}

    def tensor(x) -> torch.Tensor:
        out = torch.from_numpy(np.array(x, np.float32)).to(getattr(torch, dtype))
        out = out.transpose(1, 2).contiguous()
        return out.cuda() if on_gpu else out

    query, key, value = map(tensor, (q, k, v))

    def attend() -> None:
        with torch.inference_mode():
            torch.nn.functional.scaled_dot_product_attention(
                query, key, value, is_causal=True, enable_gqa=True
            )
            if on_gpu:
                torch.cuda.synchronize()

    return {"pytorch": attend}


def show(report: dict[str, Any]) -> str:
    """Formats the report."""
    rows = []
    for row in report["rows"]:
        ours: Spread = row["seconds"]["ours"]
        theirs: Spread | None = row["seconds"].get("pytorch")
        rows.append(
            [
                f"{row['length']:,}",
                row["implementation"],
                milliseconds(ours),
                milliseconds(theirs) if theirs else "-",
                f"{ours['median'] / theirs['median']:.2f}" if theirs else "-",
                f"{row['temporary_bytes'] / 2**20:.0f}",
                f"{row['square_bytes'] / 2**20:.0f}",
            ]
        )
    heads = "{} query heads, {} key heads of {}".format(*report["heads"])
    columns = ["tokens", "ours is", "ours ms", "PyTorch ms", "ratio", "MiB", "scores: MiB"]
    table = text_table(columns, rows, words=0)
    return f"{report['machine']['device']}, {report['dtype']}, {heads}\n{table}"
