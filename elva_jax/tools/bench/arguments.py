"""Flags that several benches share."""

from __future__ import annotations

import argparse


def counts(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between them, such as 32,64; for `type=` of a flag."""
    try:
        numbers = tuple(int(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"wants whole numbers with commas between them, such as 32,64, got '{text}'"
        ) from None
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {min(numbers)}")
    return tuple(dict.fromkeys(numbers))


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """--dtype; `dtype_of` says what it comes to."""
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="compute type (default: bfloat16 on a GPU, float32 elsewhere)",
    )


def add_repeats(parser: argparse.ArgumentParser, default: int) -> None:
    parser.add_argument(
        "--repeats",
        type=int,
        default=default,
        metavar="N",
        help="runs of each (default: %(default)s)",
    )


def dtype_of(args: argparse.Namespace) -> str:
    import jax

    return args.dtype or ("bfloat16" if jax.default_backend() == "gpu" else "float32")
