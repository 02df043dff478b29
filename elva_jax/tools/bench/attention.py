"""`elva bench attention`: causal attention forward, ours beside PyTorch's, and what memory it needs."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from elva_jax.tools.bench.arguments import add_dtype, add_repeats, counts, dtype_of

HELP = """\
Times causal attention (forward, one sequence) as prefill runs it, beside PyTorch's scaled_dot_product_attention where PyTorch is
installed, in one process and in turn. Memory is what XLA allots to the compiled program beyond its inputs and its result.

examples:
  elva bench attention
  elva bench attention --lengths 1024,5120 --dtype bfloat16 --heads 28 --kv-heads 4"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lengths",
        type=counts,
        default="1024,2560,5120",
        metavar="S,S,…",
        help="tokens (default: %(default)s)",
    )
    parser.add_argument("--heads", type=int, default=12, help="query heads (default: %(default)s)")
    parser.add_argument(
        "--kv-heads", type=int, default=2, help="key and value heads (default: %(default)s)"
    )
    parser.add_argument(
        "--head-dim", type=int, default=128, help="width of a head (default: %(default)s)"
    )
    add_dtype(parser)
    add_repeats(parser, 5)


def run(args: argparse.Namespace) -> dict[str, Any]:
    import jax
    import numpy as np

    from elva_jax.ops.attention import choose_implementation, packed_attention
    from elva_jax.tools.bench.timing import interleaved, machine

    dtype = dtype_of(args)
    rows = []
    for length in args.lengths:
        rng = np.random.default_rng(0)
        shapes = [
            (1, length, heads, args.head_dim)
            for heads in (args.heads, args.kv_heads, args.kv_heads)
        ]
        q, k, v = (jax.numpy.asarray(rng.normal(size=shape), dtype) for shape in shapes)
        segment = jax.numpy.ones((1, length), jax.numpy.int32)
        compiled = jax.jit(partial(packed_attention, single=True)).lower(q, k, v, segment).compile()
        runs = {"ours": partial(compiled, q, k, v, segment)}
        runs |= _torch(q, k, v, dtype)
        rows.append(
            {
                "length": length,
                "implementation": choose_implementation(args.head_dim, dtype).name,
                "seconds": {
                    name: spread._asdict()
                    for name, spread in interleaved(runs, args.repeats).items()
                },
                "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
                "square_bytes": args.heads * length * length * 4,
            }
        )
    return {
        "machine": machine(),
        "dtype": dtype,
        "heads": [args.heads, args.kv_heads, args.head_dim],
        "rows": rows,
    }


def _torch(q, k, v, dtype: str) -> dict[str, Any]:
    """PyTorch's attention on the same numbers and the same kind of device; nothing where PyTorch is missing."""
    import jax
    import numpy as np

    try:
        import torch
    except ImportError:
        return {}
    on_gpu = jax.default_backend() == "gpu"
    if on_gpu and not torch.cuda.is_available():
        return {}
    tensors = [
        torch.from_numpy(np.array(x, np.float32))
        .to(getattr(torch, dtype))
        .transpose(1, 2)
        .contiguous()
        for x in (q, k, v)
    ]
    if on_gpu:
        tensors = [tensor.cuda() for tensor in tensors]

    def attend():
        with torch.inference_mode():
            torch.nn.functional.scaled_dot_product_attention(
                *tensors, is_causal=True, enable_gqa=True
            )
            if on_gpu:
                torch.cuda.synchronize()

    return {"pytorch": attend}


def show(report: dict[str, Any]) -> str:
    from elva_jax.tools.bench.table import text_table
    from elva_jax.tools.bench.timing import Spread, milliseconds

    rows = []
    for row in report["rows"]:
        seconds = {name: Spread(**spread) for name, spread in row["seconds"].items()}
        theirs = seconds.get("pytorch")
        rows.append(
            [
                f"{row['length']:,}",
                row["implementation"],
                milliseconds(seconds["ours"]),
                milliseconds(theirs) if theirs else "-",
                f"{seconds['ours'].median / theirs.median:.2f}" if theirs else "-",
                f"{row['temporary_bytes'] / 2**20:.0f}",
                f"{row['square_bytes'] / 2**20:.0f}",
            ]
        )
    heads = "{} query heads, {} key heads of {}".format(*report["heads"])
    columns = ["tokens", "ours is", "ours ms", "PyTorch ms", "ratio", "MiB", "a square: MiB"]
    return f"{report['machine']['device']}, {report['dtype']}, {heads}\n" + text_table(
        columns, rows, words=0
    )
