"""RoPE of a Hugging Face config.json: `rope_parameters` from and to the keys `rope_*` of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elva_jax.config.schema import ModelConfig
from elva_jax.errors import ConvertError
from elva_jax.ops.rope import KINDS

THETA = 10_000.0  # transformers' default where config.json has none
# Settings of YaRN, with the values that agree with the formula of `ops.rope`.
YARN = {
    "beta_fast": (32, 32.0),
    "beta_slow": (1, 1.0),
    "attention_factor": (None,),
    "mscale": (None,),
    "mscale_all_dim": (None,),
    "truncate": (True,),
}
ORIGINAL = "original_max_position_embeddings"
LOW, HIGH = LLAMA3 = ("low_freq_factor", "high_freq_factor")
# What else `rope_parameters` may hold; any other key would change the result unnoticed.
KEYS = ("rope_type", "type", "rope_theta", "factor", ORIGINAL, "partial_rotary_factor", *YARN)


def read(rope: Mapping[str, Any], max_position: int, where: str) -> dict[str, Any]:
    """Values of `config.model`.

    Args:
      rope: `rope_parameters`, or `rope_scaling` of earlier files with `rope_theta`.
      max_position: the model's longest sequence.
      where: the file, for messages.

    Raises:
      ConvertError: as `check`.
    """
    check(rope, where)
    scaling = kind_of(rope)
    values = {
        "rope_theta": float(rope.get("rope_theta") or THETA),
        "rope_scaling": scaling,
        "rope_factor": float(rope.get("factor") or 1.0),
        "rope_original_max_position": int(rope.get(ORIGINAL) or max_position),
    }
    if scaling == "llama3":
        values |= {f"rope_{key}": float(rope[key]) for key in LLAMA3}
    return values


def write(model: ModelConfig) -> dict[str, Any]:
    """The `rope_parameters` of a run's `config.model`."""
    rope = {"rope_type": model.rope_scaling, "rope_theta": float(model.rope_theta)}
    if model.rope_scaling != "default":
        rope |= {"factor": float(model.rope_factor), ORIGINAL: model.rope_original_max_position}
    if model.rope_scaling == "llama3":
        rope |= {LOW: model.rope_low_freq_factor, HIGH: model.rope_high_freq_factor}
    return rope


def kind_of(rope: Mapping[str, Any]) -> str:
    """The kind of scaling, under its new or its old key."""
    kind: str = rope.get("rope_type", rope.get("type", "default"))
    return kind


def check(rope: Mapping[str, Any], where: str) -> None:
    """Refuses a RoPE scaling that the configuration cannot say.

    Raises:
      ConvertError: the kind, a key of the scaling, or one that it lacks.
    """
    scaling = kind_of(rope)
    if scaling not in KINDS:
        known = ", ".join(KINDS)
        raise ConvertError(
            f"{where}: RoPE scaling {scaling!r} is not one of {known}; use a checkpoint without it"
        )
    llama3 = LLAMA3 if scaling == "llama3" else ()
    if unknown := sorted(set(rope) - {*KEYS, *llama3}):
        raise ConvertError(
            f"{where}: RoPE scaling sets {', '.join(unknown)}, which the decoder does not know;"
            " use a checkpoint without it"
        )
    for key, allowed in YARN.items():
        if rope.get(key, allowed[0]) not in allowed:
            raise ConvertError(
                f"{where}: RoPE scaling sets {key} to {rope[key]}; the configuration has no key for"
                f" it, only {allowed[-1]} is supported"
            )
    if llama3:
        needed = ("factor", ORIGINAL, *llama3)
        if missing := [key for key in needed if rope.get(key) is None]:
            raise ConvertError(
                f"{where}: RoPE scaling llama3 lacks {', '.join(missing)}; download it again"
            )
        if rope[LOW] >= rope[HIGH]:
            raise ConvertError(
                f"{where}: RoPE scaling llama3 needs {LOW} below {HIGH}, got {rope[LOW]} and"
                f" {rope[HIGH]}; download it again"
            )
