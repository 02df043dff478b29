"""BERT: config.json to `config.text_tower`, and tensor names.

A folder holds a BertModel or one with a head on it, such as BertForMaskedLM: names then begin with
`bert.`. Older files call the scales and biases of norms gamma and beta.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from elva_jax.config.text_schema import TextTowerConfig
from elva_jax.errors import ConvertError
from elva_jax.hf.param_mapping import LINEAR, Rule, Table
from elva_jax.hf.siglip import ACTIVATIONS, attention_rules, weight_and_bias
from elva_jax.hf.tensor_store import TensorStore

MODEL_TYPES = ("bert",)
# Our name in config.text_tower -> theirs, and the default of transformers' BertConfig.
SAME = {
    "hidden_size": ("hidden_size", 768),
    "intermediate_size": ("intermediate_size", 3072),
    "num_layers": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 12),
    "max_position": ("max_position_embeddings", 512),
    "token_types": ("type_vocab_size", 2),
    "norm_eps": ("layer_norm_eps", 1e-12),
}
TABLE = "vocab width -> vocab width"
# Heads of other uses than ours, and what is no parameter.
IGNORED = (r"cls\..*", r"classifier\..*", r"qa_outputs\..*", r"(bert\.)?embeddings\.position_ids")
POOLER = r"(bert\.)?pooler\..*"


def _norm(ours: str, theirs: str, names: tuple[str, str]) -> list[Rule]:
    return [
        Rule(f"{ours}_{part}", f"{theirs}.LayerNorm.{name}")
        for part, name in zip(("scale", "bias"), names, strict=True)
    ]


def _rules(norm_names: tuple[str, str], *, pooler: bool) -> Iterator[Rule]:
    at = "bert.embeddings."
    yield Rule("text/token_embedding", f"{at}word_embeddings.weight", TABLE)
    yield Rule("text/position_embedding", f"{at}position_embeddings.weight")
    yield Rule("text/type_embedding", f"{at}token_type_embeddings.weight")
    yield from _norm("text/embedding_norm", "bert.embeddings", norm_names)
    ours, theirs = "text/layers/", "bert.encoder.layer.{}."
    inputs = [f"{theirs}attention.self.{name}" for name in ("query", "key", "value")]
    yield from attention_rules(ours, inputs, f"{theirs}attention.output.dense")
    yield from _norm(f"{ours}norm1", f"{theirs}attention.output", norm_names)
    yield from weight_and_bias(f"{ours}fc1", f"{theirs}intermediate.dense", pattern=LINEAR)
    yield from weight_and_bias(f"{ours}fc2", f"{theirs}output.dense", pattern=LINEAR)
    yield from _norm(f"{ours}norm2", f"{theirs}output", norm_names)
    if pooler:
        yield from weight_and_bias("text/pooler", "bert.pooler.dense", pattern=LINEAR)


def read_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values of `config.text_tower` from config.json.

    Raises:
      ConvertError: another architecture, or a feature that our tower lacks.
    """
    kind = config.get("model_type")
    if kind not in MODEL_TYPES:
        known = ", ".join(MODEL_TYPES)
        raise ConvertError(f"{where}: model_type is {kind!r}; text_tower.kind = bert reads {known}")
    activation = config.get("hidden_act", "gelu")
    positions = config.get("position_embedding_type", "absolute")
    ours = ACTIVATIONS.get(activation)
    if ours not in ("gelu", "gelu_tanh") or positions != "absolute" or config.get("is_decoder"):
        raise ConvertError(
            f"{where}: hidden_act {activation!r}, position_embedding_type {positions!r}, is_decoder"
            f" {bool(config.get('is_decoder'))}; BERT is read with gelu or gelu_new, absolute"
            " positions, as an encoder"
        )
    shape = {name: config.get(theirs, default) for name, (theirs, default) in SAME.items()}
    return {"kind": "bert", "activation": ours, **shape}


def table(config: Mapping[str, Any], tower: TextTowerConfig, store: TensorStore) -> Table:
    """The tensor names of a folder for a run's `config.text_tower`.

    Raises:
      ConvertError: numbers of config.json that differ from the run's.
    """
    theirs = read_config(config, str(store.path))
    differ = [
        f"{key} is {value}, the run has text_tower.{key} = {getattr(tower, key)}"
        for key, value in theirs.items()
        if value != getattr(tower, key)
    ]
    if differ:
        raise ConvertError(f"{store.path}: {'; '.join(differ)}")
    old = any(name.endswith(".gamma") for name in store.names())
    pooler = tower.pooling == "pooler"
    return Table(
        tuple(_rules(("gamma", "beta") if old else ("weight", "bias"), pooler=pooler)),
        {"heads": tower.num_heads, "dim": tower.hidden_size // tower.num_heads},
        prefix="bert.",
        ignored=IGNORED if pooler else (*IGNORED, POOLER),
    )
