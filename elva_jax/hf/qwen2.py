"""Qwen2, Qwen2.5 and Llama from Hugging Face: config.json to `config.model`, and the names of the decoder's tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from elva_jax.errors import ConvertError
from elva_jax.hf.param_mapping import Rule, Table
from elva_jax.hf.safetensors_io import Store
from elva_jax.ops.rope import KINDS

MODEL_TYPES = ("qwen2", "llama")
TRANSPOSED = "o i -> i o"  # PyTorch's linear maps are [out, in]
ROWS = 4096  # of a vocabulary that are compared at once
# Ours in config.model -> theirs in config.json.
SAME = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "rms_norm_eps": "rms_norm_eps",
    "max_position": "max_position_embeddings",
}
# What shapes do not show, so that a difference would pass unseen. The context may be extended: max_position and rope_scaling are the run's.
STRICT = ("num_heads", "num_kv_heads", "head_dim", "rms_norm_eps", "rope_theta")
THETA = 10_000.0  # transformers' default where config.json has none
# Numbers of YaRN and the values that leave its formula as `ops.rope` has it.
YARN = {
    "beta_fast": (32, 32.0),
    "beta_slow": (1, 1.0),
    "attention_factor": (None,),
    "mscale": (None,),
    "mscale_all_dim": (None,),
}


def _layer_rules() -> Iterator[Rule]:
    for block, names in (("self_attn", "qkvo"), ("mlp", ("gate", "up", "down"))):
        for name in names:
            yield Rule(
                f"decoder/layers/{name}_proj/kernel",
                f"model.layers.{{}}.{block}.{name}_proj.weight",
                TRANSPOSED,
            )
    for name in "qkv":
        yield Rule(
            f"decoder/layers/{name}_proj/bias", f"model.layers.{{}}.self_attn.{name}_proj.bias"
        )
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield Rule(f"decoder/layers/{name}/scale", f"model.layers.{{}}.{name}.weight")


RULES = (
    Rule("decoder/embed_tokens", "model.embed_tokens.weight", "v d -> v d"),
    *_layer_rules(),
    Rule("decoder/norm/scale", "model.norm.weight"),
    Rule("decoder/lm_head", "lm_head.weight", "v d -> d v"),
)


def read_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values of `config.model` from config.json.

    Raises:
      ConvertError: another architecture, a key that is missing, or a feature that the decoder lacks.
    """
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        raise ConvertError(
            f"{where}: model_type is {kind!r}; the decoder reads {', '.join(MODEL_TYPES)}"
        )
    if missing := [key for key in SAME.values() if key not in config]:
        raise ConvertError(f"{where}: config.json lacks {', '.join(missing)}; fetch it again")
    _refuse(config, kind, where)
    values = {ours: config[theirs] for ours, theirs in SAME.items()}
    values["num_kv_heads"] = config.get("num_key_value_heads") or values["num_heads"]
    values["head_dim"] = config.get("head_dim") or values["hidden_size"] // values["num_heads"]
    values["rms_norm_eps"] = float(values["rms_norm_eps"])
    values["tie_embeddings"] = bool(config.get("tie_word_embeddings", False))
    values["attention_bias"] = kind == "qwen2"
    return {**values, **_rope(config, where)}


def _refuse(config: Mapping[str, Any], kind: str, where: str) -> None:
    """Features that would change the result without changing a shape."""
    if config.get("hidden_act", "silu") != "silu":
        raise ConvertError(
            f"{where}: hidden_act is {config['hidden_act']!r}; the decoder has silu only"
        )
    sliding = config.get("layer_types")
    if sliding is None:
        sliding = (
            ["sliding_attention"]
            if config.get("max_window_layers", 28) < config["num_hidden_layers"]
            else []
        )
    if (
        config.get("use_sliding_window")
        and config.get("sliding_window")
        and "sliding_attention" in sliding
    ):
        raise ConvertError(
            f"{where}: uses a sliding window of {config['sliding_window']} tokens, which the decoder has not; where no sequence will be"
            " longer, set use_sliding_window to false in its config.json"
        )
    if kind == "llama":
        for key in ("attention_bias", "mlp_bias"):
            if config.get(key):
                raise ConvertError(
                    f"{where}: has {key}, which the decoder has no place for; only Llamas without it can be read"
                )


def _rope(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """RoPE, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    scaling = rope.get("rope_type", rope.get("type", "default"))
    if scaling not in KINDS:
        raise ConvertError(
            f"{where}: RoPE scaling {scaling!r} is not one of {', '.join(KINDS)}; give a checkpoint without it"
        )
    if rope.get("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ConvertError(
            f"{where}: rotates a part of each head only (partial_rotary_factor), which the decoder has not"
        )
    for key, allowed in YARN.items():
        if rope.get(key, allowed[0]) not in allowed:
            raise ConvertError(
                f"{where}: RoPE scaling sets {key} to {rope[key]}; the configuration has no key for it, only {allowed[-1]} fits"
            )
    trained = rope.get("original_max_position_embeddings") or config["max_position_embeddings"]
    if scaling == "dynamic":
        trained = config["max_position_embeddings"]  # transformers counts from there
    return {
        "rope_theta": float(rope.get("rope_theta") or config.get("rope_theta") or THETA),
        "rope_scaling": scaling,
        "rope_factor": float(rope.get("factor") or 1.0),
        "rope_original_max_position": int(trained),
    }


def table(config: Mapping[str, Any], model: Mapping[str, Any], store: Store) -> Table:
    """Where the decoder's parameters lie in a store, for a run's `config.model`.

    Raises:
      ConvertError: numbers of config.json that differ from the run's, or a head that is said to be tied and is not.
    """
    theirs = read_config(config, str(store.path))
    differ = [
        f"{key} is {theirs[key]}, the run has model.{key} = {model[key]}"
        for key in STRICT
        if theirs[key] != model[key]
    ]
    if model["tie_embeddings"] and not theirs["tie_embeddings"]:
        differ.append("its head is not tied to the embedding; set model.tie_embeddings to False")
    if differ:
        raise ConvertError(f"{store.path}: {'; '.join(differ)}")
    rules = RULES
    if config["model_type"] == "llama":
        rules = tuple(
            rule._replace(zeros=True) if rule.ours.endswith("/bias") else rule for rule in rules
        )
    ignored = [r".*rotary_emb\.inv_freq"]
    if theirs["tie_embeddings"]:
        rules = tuple(
            rule._replace(theirs=RULES[0].theirs) if rule.ours == "decoder/lm_head" else rule
            for rule in rules
        )
        ignored.append(r"lm_head\.weight")
        _check_tied(store)
    return Table(rules, prefix="model.", ignored=tuple(ignored), growing="v")


def _check_tied(store: Store) -> None:
    names = {name.removeprefix("model."): name for name in store.names()}
    if "lm_head.weight" not in names or "embed_tokens.weight" not in names:
        return
    head, embedding = store.read(names["lm_head.weight"]), store.read(names["embed_tokens.weight"])
    same = head.shape == embedding.shape and all(
        np.array_equal(head[i : i + ROWS], embedding[i : i + ROWS])
        for i in range(0, len(head), ROWS)
    )
    for name in ("lm_head.weight", "embed_tokens.weight"):
        store.release(names[name])
    if not same:
        raise ConvertError(
            f"{store.where(names['lm_head.weight'])} differs from the embedding, but config.json says tie_word_embeddings; set it to false"
        )
