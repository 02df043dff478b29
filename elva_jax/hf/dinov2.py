"""DINOv2 with registers: config.json to `config.teacher`, and tensor names as on the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from elva_jax.config.schema import TeacherConfig
from elva_jax.errors import ConvertError
from elva_jax.hf.param_mapping import LINEAR, Rule, Table
from elva_jax.hf.siglip import (
    EPS,
    PATCHES,
    attention_rules,
    axis_sizes,
    inner_width,
    read_activation,
    refuse_differences,
    weight_and_bias,
)
from elva_jax.hf.tensor_store import TensorStore

MODEL_TYPES: tuple[str, ...] = ("dinov2_with_registers",)
# Our name in config.teacher -> theirs, and the default of transformers' Dinov2WithRegistersConfig,
# which files may leave out.
SAME = {
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 16),
    "hidden_size": ("hidden_size", 768),
    "num_layers": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 12),
    "num_registers": ("num_register_tokens", 4),
}
# Only masked pre-training needs the mask token; the classifier is not part of the tower.
IGNORED = (r".*embeddings\.mask_token", r"classifier\..*")
PLACES = "1 place width -> place width"


def _layer_rules() -> Iterator[Rule]:
    ours, theirs = "vision/layers/", "encoder.layer.{}."
    for i in (1, 2):
        yield from weight_and_bias(f"{ours}norm{i}", f"{theirs}norm{i}", "scale")
        yield from weight_and_bias(f"{ours}fc{i}", f"{theirs}mlp.fc{i}", pattern=LINEAR)
        yield Rule(f"{ours}scale{i}", f"{theirs}layer_scale{i}.lambda1")
    inputs = [f"{theirs}attention.attention.{name}" for name in ("query", "key", "value")]
    yield from attention_rules(ours, inputs, f"{theirs}attention.output.dense")


RULES = (
    *weight_and_bias("vision/patch", "embeddings.patch_embeddings.projection", pattern=PATCHES),
    Rule("vision/class_token", "embeddings.cls_token", PLACES),
    Rule("vision/registers", "embeddings.register_tokens", PLACES),
    Rule("vision/position_embedding", "embeddings.position_embeddings", PLACES),
    *_layer_rules(),
    *weight_and_bias("vision/post_norm", "layernorm", "scale"),
)
PREFIX = "dinov2_with_registers."  # of a classifier's tower


def read_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values of `config.teacher` from config.json.

    Raises:
      ConvertError: a feature that our tower lacks, such as the SwiGLU of the giant model.
    """
    lacking = {"use_swiglu_ffn": False, "qkv_bias": True, "layer_norm_eps": EPS}
    for key, only in lacking.items():
        if (value := config.get(key, only)) != only:
            raise ConvertError(
                f"{where}: {key} of its config.json is {value}; the tower supports only {only}"
            )
    shape = {ours: config.get(theirs, default) for ours, (theirs, default) in SAME.items()}
    return {
        "kind": "dinov2",
        **shape,
        "pretrained_image_size": shape["image_size"],
        "intermediate_size": inner_width(shape["hidden_size"], config.get("mlp_ratio", 4), where),
        "activation": read_activation(config, "gelu", where),
    }


def table(config: Mapping[str, Any], teacher: TeacherConfig, store: TensorStore) -> Table:
    """The tensor names of a folder for a run's `config.teacher`.

    Raises:
      ConvertError: numbers of config.json that differ from the run's. Another `image_size` is none:
        positions are interpolated from those for `pretrained_image_size`.
    """
    theirs = read_config(config, str(store.path))
    trained = theirs.pop("image_size")
    if not teacher.pretrained_image_size and teacher.image_size == trained:
        del theirs["pretrained_image_size"]
    refuse_differences(theirs, teacher, store)
    # Without registers their tensor is there, and empty.
    empty = (re.escape(name) for name in store.names() if 0 in store.shape(name))
    return Table(RULES, axis_sizes(teacher), prefix=PREFIX, ignored=(*IGNORED, *empty))
