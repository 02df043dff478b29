"""Qwen2, Qwen2.5 and Llama: config.json to `config.model`, and the decoder's tensor names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from elva_jax.config.schema import ModelConfig
from elva_jax.errors import ConvertError
from elva_jax.hf import rope
from elva_jax.hf.param_mapping import LINEAR, Rule, Table
from elva_jax.hf.tensor_store import TensorStore

MODEL_TYPES = ("qwen2", "llama")
ROWS = 4096  # of a vocabulary, compared at a time
# Our name in config.model -> theirs in config.json.
SAME = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "rms_norm_eps": "rms_norm_eps",
    "max_position": "max_position_embeddings",
}
# Settings that shapes do not show, so that a difference would go unnoticed. max_position and
# rope_scaling are left to the run, which may extend the context.
STRICT = ("num_heads", "num_kv_heads", "head_dim", "rms_norm_eps", "rope_theta")

_LAYER = "model.layers.{}."
_ATTENTION = {f"{name}_proj": f"{_LAYER}self_attn.{name}_proj" for name in "qkvo"}
_MLP = {f"{name}_proj": f"{_LAYER}mlp.{name}_proj" for name in ("gate", "up", "down")}
MODULES = _ATTENTION | _MLP  # projection -> the module's name; {} is the layer
_NORMS = ("input_layernorm", "post_attention_layernorm")
RULES = (
    Rule("decoder/embed_tokens", "model.embed_tokens.weight", "vocab width -> vocab width"),
    *(
        Rule(f"decoder/layers/{ours}/kernel", f"{theirs}.weight", LINEAR)
        for ours, theirs in MODULES.items()
    ),
    *(
        Rule(f"decoder/layers/{ours}/bias", f"{theirs}.bias")
        for ours, theirs in _ATTENTION.items()
        if ours != "o_proj"
    ),
    *(Rule(f"decoder/layers/{name}/scale", f"{_LAYER}{name}.weight") for name in _NORMS),
    Rule("decoder/norm/scale", "model.norm.weight"),
    Rule("decoder/lm_head", "lm_head.weight", "vocab width -> width vocab"),
)


def read_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values of `config.model` from config.json.

    Raises:
      ConvertError: another architecture, a missing key, or a feature that our decoder lacks.
    """
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        known = ", ".join(MODEL_TYPES)
        raise ConvertError(f"{where}: model_type is {kind!r}; the decoder reads {known}")
    if missing := [key for key in SAME.values() if key not in config]:
        raise ConvertError(f"{where}: config.json lacks {', '.join(missing)}; download it again")
    _refuse_unsupported(config, where)
    values = {ours: config[theirs] for ours, theirs in SAME.items()}
    values["num_kv_heads"] = config.get("num_key_value_heads") or values["num_heads"]
    values["head_dim"] = config.get("head_dim") or values["hidden_size"] // values["num_heads"]
    values["rms_norm_eps"] = float(values["rms_norm_eps"])
    values["tie_embeddings"] = bool(config.get("tie_word_embeddings", False))
    values["attention_bias"] = kind == "qwen2"
    return {**values, **_rope(config, where)}


def _refuse_unsupported(config: Mapping[str, Any], where: str) -> None:
    """Raises ConvertError for features that change the result without changing a shape."""
    if (activation := config.get("hidden_act", "silu")) != "silu":
        raise ConvertError(f"{where}: hidden_act is {activation!r}; the decoder has only silu")
    if _uses_sliding_window(config):
        raise ConvertError(
            f"{where}: uses a sliding window of {config['sliding_window']} tokens, which the"
            " decoder does not support; if no sequence will be longer, set use_sliding_window"
            " to false in its config.json"
        )
    if config["model_type"] == "llama":
        for key in ("attention_bias", "mlp_bias"):
            if config.get(key):
                raise ConvertError(
                    f"{where}: has {key}, for which the decoder has no parameter; only a Llama"
                    " without it can be read"
                )


def _uses_sliding_window(config: Mapping[str, Any]) -> bool:
    if not (config.get("use_sliding_window") and config.get("sliding_window")):
        return False
    layer_types = config.get("layer_types")
    if layer_types is None:  # files from before transformers 5
        return config.get("max_window_layers", 28) < config["num_hidden_layers"]
    return "sliding_attention" in layer_types


def _rope(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """RoPE from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (earlier)."""
    given = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    if given.get("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ConvertError(
            f"{where}: rotates only a part of each head (partial_rotary_factor), which the decoder"
            " does not support"
        )
    given["rope_theta"] = given.get("rope_theta") or config.get("rope_theta")
    if rope.kind_of(given) == "dynamic":
        given[rope.ORIGINAL] = config["max_position_embeddings"]  # as transformers does
    return rope.read(given, config["max_position_embeddings"], where)


def table(config: Mapping[str, Any], model: ModelConfig, store: TensorStore) -> Table:
    """The tensor names of a folder for a run's `config.model`.

    Raises:
      ConvertError: settings of config.json that differ from the run's, or a head that differs from
        the embedding although config.json ties them.
    """
    theirs = read_config(config, str(store.path))
    differ = differences(theirs, model, STRICT)
    if model.tie_embeddings and not theirs["tie_embeddings"]:
        differ.append("its head is not tied to the embedding; set model.tie_embeddings to False")
    if differ:
        raise ConvertError(f"{store.path}: {'; '.join(differ)}")
    ignored = [r".*rotary_emb\.inv_freq"]
    changes: dict[str, dict[str, Any]] = {}
    if config["model_type"] == "llama":
        changes = {rule.ours: {"optional": True} for rule in RULES if rule.ours.endswith("/bias")}
    if theirs["tie_embeddings"]:
        changes["decoder/lm_head"] = {"theirs": RULES[0].theirs}
        ignored.append(r"lm_head\.weight")
        _check_tied(store)
    rules = tuple(dataclasses.replace(rule, **changes.get(rule.ours, {})) for rule in RULES)
    return Table(rules, prefix="model.", ignored=tuple(ignored))


def differences(theirs: Mapping[str, Any], model: ModelConfig, keys: tuple[str, ...]) -> list[str]:
    """A phrase for each of `keys` in which a folder differs from a run's `config.model`."""
    return [
        f"{key} is {theirs[key]}, the run has model.{key} = {getattr(model, key)}"
        for key in keys
        if theirs[key] != getattr(model, key)
    ]


def _check_tied(store: TensorStore) -> None:
    """Raises ConvertError if the folder has a head that differs from its embedding."""
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
            f"{store.where(names['lm_head.weight'])} differs from the embedding, but config.json"
            " says tie_word_embeddings; set it to false"
        )
