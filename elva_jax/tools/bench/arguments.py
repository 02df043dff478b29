"""Flags shared by several benches."""

from __future__ import annotations

import argparse
from typing import Literal

from elva_jax.utils import numbers

Dtype = Literal["float32", "bfloat16"]


def counts(text: str) -> tuple[int, ...]:
    """Whole numbers separated by commas, such as 32,64; for `type=` of a flag."""
    try:
        words = [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"needs whole numbers separated by commas, such as 32,64, got '{text[:40]}'"
        ) from None
    return tuple(dict.fromkeys(numbers.TOKENS(str(word)) for word in words))


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """Adds --dtype, which `dtype_of` resolves."""
    text = "compute type (default: bfloat16 on a GPU, float32 elsewhere)"
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help=text)


def add_repeats(parser: argparse.ArgumentParser, default: int) -> None:
    """Adds --repeats."""
    text = "timed runs of each (default: %(default)s)"
    parser.add_argument("--repeats", type=numbers.ROWS, default=default, metavar="N", help=text)


def dtype_of(args: argparse.Namespace) -> Dtype:
    """The compute type: --dtype, or the default of the device."""
    import jax

    return args.dtype or ("bfloat16" if jax.default_backend() == "gpu" else "float32")
