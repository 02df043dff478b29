"""LanguageBind's video tower: config.json to `config.teacher`, and tensor names as on the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from elva_jax.config.schema import TeacherConfig
from elva_jax.errors import ConvertError
from elva_jax.hf.param_mapping import Rule, Table
from elva_jax.hf.siglip import (
    PATCHES,
    SAME,
    attention_rules,
    axis_sizes,
    clip_layer_rules,
    read_activation,
    refuse_differences,
    weight_and_bias,
)
from elva_jax.hf.tensor_store import TensorStore
from elva_jax.models.towers.languagebind import EPS
from elva_jax.utils.numbers import shown

MODEL_TYPES: tuple[str, ...] = ("LanguageBindVideo",)
# The text tower, both projections into the common space, and a table that follows from the shape.
IGNORED: tuple[str, ...] = (
    r"text_model\..*",
    r"(text|visual)_projection\.weight",
    r"logit_scale",
    r"(vision_model\.)?embeddings\.position_ids",
)
LORA = re.compile(r"base_model\.model\.|\.lora_[AB]\.")  # in PEFT's names
_LAYER = "vision_model.encoder.layers.{}."
_EMBEDDING = Rule(
    "vision/layers/temporal_embedding", f"{_LAYER}temporal_embedding", "1 time width -> time width"
)


def _temporal_rules() -> Iterator[Rule]:
    ours, theirs = "vision/layers/temporal_", f"{_LAYER}temporal_"
    yield from weight_and_bias(f"{ours}norm", f"{theirs}layer_norm1", "scale")
    inputs = [f"{theirs}attn.{name}_proj" for name in "qkv"]
    yield from attention_rules(ours, inputs, f"{theirs}attn.out_proj")


_EMBEDDINGS = "vision_model.embeddings."
RULES = (
    Rule("vision/patch_kernel", f"{_EMBEDDINGS}patch_embedding.weight", PATCHES),
    Rule("vision/class_token", f"{_EMBEDDINGS}class_embedding", "width -> 1 width"),
    Rule("vision/position_embedding", f"{_EMBEDDINGS}position_embedding.weight"),
    *weight_and_bias("vision/pre_norm", "vision_model.pre_layrnorm", "scale"),
    *clip_layer_rules(),
    *_temporal_rules(),
    *weight_and_bias("vision/post_norm", "vision_model.post_layernorm", "scale"),
)


def read_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values of `config.teacher` from config.json.

    Raises:
      ConvertError: a tower without temporal attention, a missing key, or a feature that our tower
        lacks.
    """
    # As CLIPConfig of transformers: the second group, where there is one, has the last word.
    groups = (config.get(name) or {} for name in ("vision_config", "vision_config_dict"))
    vision = {key: value for group in groups for key, value in group.items()}
    # No defaults: a wrong activation or number of frames would give wrong features in silence.
    needed = ("num_frames", "hidden_act", *(theirs for theirs, _ in SAME.values()))
    if missing := [key for key in needed if key not in vision and key != "image_size"]:
        raise ConvertError(
            f"{where}: vision_config of its config.json lacks {', '.join(missing)}; use the file"
            " that is published with the weights"
        )
    for key, only in {"add_time_attn": True, "layer_norm_eps": EPS, "num_channels": 3}.items():
        if (value := vision.get(key, None if key == "add_time_attn" else only)) != only:
            raise ConvertError(
                f"{where}: vision_config.{key} of its config.json is {shown(value)}; the tower"
                f" supports only {only}"
            )
    shape = {ours: vision.get(theirs, default) for ours, (theirs, default) in SAME.items()}
    return {
        "kind": "languagebind",
        **shape,
        "num_frames": vision["num_frames"],
        "activation": read_activation(vision, "", where),
    }


def table(config: Mapping[str, Any], teacher: TeacherConfig, store: TensorStore) -> Table:
    """The tensor names of a folder for a run's `config.teacher`.

    Raises:
      ConvertError: a checkpoint with LoRA factors, or numbers of config.json that differ from the
        run's.
    """
    if factors := next((name for name in store.names() if LORA.search(name)), None):
        raise ConvertError(
            f"{store.path}: holds LoRA factors that are not merged, such as {shown(factors)}; use"
            " LanguageBind/LanguageBind_Video_merge, or a fully fine-tuned one such as"
            " LanguageBind/LanguageBind_Video_FT"
        )
    refuse_differences(read_config(config, str(store.path)), teacher, store)
    rules, ignored = (*RULES, _EMBEDDING), IGNORED
    if teacher.num_frames == 1:  # it is not added then
        rules, ignored = RULES, (*IGNORED, r".*\.temporal_embedding")
    return Table(rules, axis_sizes(teacher), prefix="vision_model.", ignored=ignored)
