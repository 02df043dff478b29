"""SigLIP and SigLIP 2 (fixed resolution): config.json to `config.teacher`, and tensor names."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from elva_jax.config.schema import TeacherConfig
from elva_jax.errors import ConvertError
from elva_jax.hf.param_mapping import LINEAR, Rule, Table
from elva_jax.hf.tensor_store import TensorStore
from elva_jax.utils.numbers import MOST_WIDTH

MODEL_TYPES: tuple[str, ...] = ("siglip", "siglip_vision_model")
# Our name in config.teacher -> theirs, and the default of transformers' SiglipVisionConfig, which
# published files leave out.
SAME = {
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 16),
    "hidden_size": ("hidden_size", 768),
    "intermediate_size": ("intermediate_size", 3072),
    "num_layers": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 12),
}
# Their name -> ours, and the default of transformers' SiglipTextConfig.
TEXT_SAME = {
    "hidden_size": ("hidden_size", 768),
    "intermediate_size": ("intermediate_size", 3072),
    "num_hidden_layers": ("text_layers", 12),
    "num_attention_heads": ("num_heads", 12),
    "max_position_embeddings": ("text_length", 64),
}
EPS = 1e-6
# Theirs -> our `activation`; several names of theirs are one function.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
PATCHES = "width channel row column -> (row column channel) width"  # of the convolution
HEADS_IN, HEADS_IN_BIAS = "(heads dim) width -> width heads dim", "(heads dim) -> heads dim"
HEADS_OUT = "width (heads dim) -> heads dim width"


def weight_and_bias(ours: str, theirs: str, name: str = "kernel", pattern: str = "") -> list[Rule]:
    """The rules of a norm or a projection, whose bias has no pattern."""
    return [
        Rule(f"{ours}_{name}", f"{theirs}.weight", pattern),
        Rule(f"{ours}_bias", f"{theirs}.bias"),
    ]


def attention_rules(ours: str, inputs: Sequence[str], out: str) -> Iterator[Rule]:
    """The rules of attention's projections: to queries, keys and values, and back."""
    for name, projection in zip(("query", "key", "value"), inputs, strict=True):
        yield Rule(f"{ours}{name}_kernel", f"{projection}.weight", HEADS_IN)
        yield Rule(f"{ours}{name}_bias", f"{projection}.bias", HEADS_IN_BIAS)
    yield from weight_and_bias(f"{ours}out", out, pattern=HEADS_OUT)


def clip_layer_rules(tower: str = "vision") -> Iterator[Rule]:
    """The rules of a block of a vision or text tower with CLIP's names, which SigLIP has kept."""
    ours, theirs = f"{tower}/layers/", tower + "_model.encoder.layers.{}."
    for i in (1, 2):
        yield from weight_and_bias(f"{ours}norm{i}", f"{theirs}layer_norm{i}", "scale")
        yield from weight_and_bias(f"{ours}fc{i}", f"{theirs}mlp.fc{i}", pattern=LINEAR)
    inputs = [f"{theirs}self_attn.{name}_proj" for name in "qkv"]
    yield from attention_rules(ours, inputs, f"{theirs}self_attn.out_proj")


def _head_rules() -> Iterator[Rule]:
    """Attention pooling; PyTorch keeps its queries, keys and values in one matrix."""
    ours, theirs = "vision/head/", "vision_model.head."
    yield Rule(f"{ours}probe", f"{theirs}probe", "1 1 width -> 1 width")
    for k, name in enumerate(("query", "key", "value")):
        projection = f"{theirs}attention.in_proj"
        yield Rule(f"{ours}{name}_kernel", f"{projection}_weight", HEADS_IN, part=(k, 3))
        yield Rule(f"{ours}{name}_bias", f"{projection}_bias", HEADS_IN_BIAS, part=(k, 3))
    yield from weight_and_bias(f"{ours}out", f"{theirs}attention.out_proj", pattern=HEADS_OUT)
    yield from weight_and_bias(f"{ours}norm", f"{theirs}layernorm", "scale")
    for i in (1, 2):
        yield from weight_and_bias(f"{ours}fc{i}", f"{theirs}mlp.fc{i}", pattern=LINEAR)


_EMBEDDINGS = "vision_model.embeddings."
RULES = (
    *weight_and_bias("vision/patch", f"{_EMBEDDINGS}patch_embedding", pattern=PATCHES),
    Rule("vision/position_embedding", f"{_EMBEDDINGS}position_embedding.weight"),
    *clip_layer_rules(),
    *weight_and_bias("vision/post_norm", "vision_model.post_layernorm", "scale"),
    *_head_rules(),
)
_TEXTS = "text_model.embeddings."
TEXT_RULES = (
    Rule("text/token_embedding", f"{_TEXTS}token_embedding.weight", "vocab width -> vocab width"),
    Rule("text/position_embedding", f"{_TEXTS}position_embedding.weight"),
    *clip_layer_rules("text"),
    *weight_and_bias("text/final_norm", "text_model.final_layer_norm", "scale"),
    *weight_and_bias("text/head", "text_model.head", pattern=LINEAR),
)
SCALARS, POSITIONS = r"logit_(scale|bias)", r"((vision|text)_model\.)?embeddings\.position_ids"
IGNORED, TEXT_IGNORED = (
    (rf"{other}_model\..*", SCALARS, POSITIONS) for other in ("text", "vision")
)


def read_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values of `config.teacher` from config.json.

    Raises:
      ConvertError: another architecture, or a feature that our tower lacks.
    """
    kind = config.get("model_type")
    if kind == "siglip2":
        raise ConvertError(
            f"{where}: is a SigLIP 2 of variable resolution (NaFlex); use one of fixed resolution,"
            " such as patch14-384"
        )
    if kind not in MODEL_TYPES:
        known = ", ".join(MODEL_TYPES)
        raise ConvertError(f"{where}: model_type is {kind!r}; the tower reads {known}")
    vision = _vision_config(config)
    if (eps := vision.get("layer_norm_eps", EPS)) != EPS:
        raise ConvertError(f"{where}: layer_norm_eps {eps}; the tower supports only {EPS}")
    shape = {ours: vision.get(theirs, default) for ours, (theirs, default) in SAME.items()}
    activation = read_activation(vision, "gelu_pytorch_tanh", where)
    return {"kind": "siglip", **shape, "activation": activation}


def table(config: Mapping[str, Any], teacher: TeacherConfig, store: TensorStore) -> Table:
    """The tensor names of a folder for a run's `config.teacher`; a missing pooling head is zeros.

    Raises:
      ConvertError: numbers of config.json that differ from the run's.
    """
    theirs = read_config(config, str(store.path))
    if teacher.activation == "gelu" and theirs["activation"] == "gelu_tanh":
        # The published weights were trained by tanh; timm and MERV run them with the exact GELU.
        del theirs["activation"]
    refuse_differences(theirs, teacher, store)
    rules = RULES
    if not _vision_config(config).get("vision_use_head", True):
        rules = tuple(
            dataclasses.replace(rule, optional=rule.ours.startswith("vision/head/"))
            for rule in rules
        )
    return Table(rules, axis_sizes(teacher), prefix="vision_model.", ignored=IGNORED)


def _vision_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of config.json about the vision tower, which may be all of it."""
    return config.get("vision_config") or {} if config["model_type"] == "siglip" else config


def read_activation(config: Mapping[str, Any], default: str, where: str) -> str:
    """`config.teacher.activation` from the `hidden_act` of a tower's configuration.

    Raises:
      ConvertError: an activation that our towers lack.
    """
    name = config.get("hidden_act", default)
    if name not in ACTIVATIONS:
        raise ConvertError(
            f"{where}: hidden_act {name!r}; the tower supports only {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[name]


def inner_width(width: int, ratio: float, where: str) -> int:
    """Inner width of the MLPs, where a configuration has it as a multiple of the outer one.

    Raises:
      ConvertError: none that a model has.
    """
    inner = int(width * ratio)
    if not 1 <= inner <= MOST_WIDTH:
        raise ConvertError(
            f"{where}: mlp_ratio {ratio} of its config.json gives MLPs of width {inner:.3g}, which"
            f" is not in [1, {MOST_WIDTH}]"
        )
    return inner


def axis_sizes(teacher: TeacherConfig) -> dict[str, int]:
    """Sizes of the axes that patterns of vision towers join in parentheses."""
    patch, heads = teacher.patch_size, teacher.num_heads
    dim = teacher.hidden_size // heads
    return {"row": patch, "column": patch, "channel": 3, "heads": heads, "dim": dim}


def refuse_differences(theirs: Mapping[str, Any], ours: TeacherConfig, store: TensorStore) -> None:
    """Raises ConvertError where config.json and `config.teacher` describe different towers."""
    differ = [
        f"{key} is {value}, the run has teacher.{key} = {getattr(ours, key)}"
        for key, value in theirs.items()
        if value != getattr(ours, key)
    ]
    if differ:
        raise ConvertError(f"{store.path}: {'; '.join(differ)}")


def text_table(config: Mapping[str, Any], teacher: TeacherConfig, store: TensorStore) -> Table:
    """The tensor names of a folder's text tower for a run's `config.teacher`.

    Raises:
      ConvertError: another architecture, or numbers of config.json that differ from the run's.
    """
    kind, where = config.get("model_type"), str(store.path)
    if kind not in ("siglip", "siglip_text_model"):
        raise ConvertError(
            f"{where}: model_type is {kind!r}; text_tower.kind = siglip reads siglip and"
            " siglip_text_model"
        )
    text = config.get("text_config") or {} if kind == "siglip" else config
    ours = {**TEXT_SAME, "hidden_act": ("activation", "gelu_pytorch_tanh")}
    values = {name: text.get(name, default) for name, (_, default) in ours.items()}
    differ = [
        f"text_config.{name} is {value}, the run has teacher.{key} = {getattr(teacher, key)}"
        for (name, value), (key, _) in zip(values.items(), ours.values(), strict=True)
        if ACTIVATIONS.get(value, value) != getattr(teacher, key)
    ]
    if differ:
        raise ConvertError(f"{where}: {'; '.join(differ)}")
    return Table(TEXT_RULES, axis_sizes(teacher), prefix="text_model.", ignored=TEXT_IGNORED)
