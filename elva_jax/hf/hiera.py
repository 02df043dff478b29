"""Hiera for video: the authors' configuration to `config.teacher`, and tensor names.

Folders are those that the authors' package writes and the hub has (facebook/hiera_base_16x224…):
config.json holds the arguments of their class, and no model_type. Classifiers and masked
autoencoders are read alike; the head or the decoder is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from elva_jax.config.schema import TeacherConfig
from elva_jax.errors import ConfigError, ConvertError
from elva_jax.hf.param_mapping import LINEAR, Rule, Table
from elva_jax.hf.siglip import (
    HEADS_IN,
    HEADS_IN_BIAS,
    HEADS_OUT,
    inner_width,
    refuse_differences,
    weight_and_bias,
)
from elva_jax.hf.tensor_store import TensorStore
from elva_jax.models.towers.hiera import KERNEL, STAGES, WIDENED
from elva_jax.utils.numbers import MOST_FRAMES, MOST_LAYERS, MOST_PIXELS, MOST_WIDTH, whole

MODEL_TYPES: tuple[str, ...] = ()  # the authors' files have none; see `is_hiera`
# What our tower is built for. Lists are as JSON has them.
ONLY = {
    "in_chans": 3,
    "q_pool": STAGES - 1,
    "q_stride": [1, 2, 2],
    "mask_unit_size": [1, WIDENED, WIDENED],
    "mask_unit_attn": [True, True, False, False],
    "dim_mul": 2.0,
    "head_mul": 2.0,
    "patch_kernel": list(KERNEL),
    "patch_padding": [k // 2 for k in KERNEL],
    "norm_layer": "LayerNorm",
    "sep_pos_embed": True,
}
# Published files may leave these out; the rest differs from the defaults of the authors' class,
# which are those of a Hiera for images.
DEFAULTS = {
    "in_chans": 3,
    "q_pool": 3,
    "mask_unit_attn": [True, True, False, False],
    "dim_mul": 2.0,
    "head_mul": 2.0,
    "norm_layer": "LayerNorm",
    "embed_dim": 96,
    "num_heads": 1,
    "stages": [2, 3, 16, 3],
    "mlp_ratio": 4.0,
}
_FRAMES, _EDGE = whole(1, MOST_FRAMES), whole(1, MOST_PIXELS)
_LAYERS, _WIDTH = whole(1, MOST_LAYERS), whole(1, MOST_WIDTH)
NUMBERS = {
    "input_size": (_FRAMES, _EDGE, _EDGE),
    "patch_stride": (_FRAMES, _EDGE, _EDGE),
    "stages": (_LAYERS,) * STAGES,
}
# Of a classifier and of a masked autoencoder.
IGNORED = (r"head\..*", r"decoder_.*", r"multi_scale_fusion_heads\..*", r"mask_token")
CONVOLUTION = "width channel time row column -> time row column channel width"
PLACES = "1 place width -> place width"


def is_hiera(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is that of a Hiera, as its authors publish it."""
    return "mask_unit_size" in config and "patch_stride" in config


def read_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values of `config.teacher` from the authors' configuration.

    Raises:
      ConvertError: a missing key, or a variant that our tower lacks (such as one for images).
    """
    config = {**DEFAULTS, **config}
    needed = (*ONLY, *NUMBERS, "embed_dim", "num_heads", "mlp_ratio")
    if missing := [key for key in needed if key not in config]:
        raise ConvertError(f"{where}: its config.json lacks {', '.join(missing)}")
    for key, only in ONLY.items():
        if config[key] != only:
            raise ConvertError(
                f"{where}: {key} of its config.json is {config[key]}; the tower supports only"
                f" {only}, as in hiera_base_16x224"
            )
    for key, ranges in NUMBERS.items():
        _check_list(config[key], ranges, f"{where}: {key} of its config.json")
    frames, height, width = config["input_size"]
    tubelet, *stride = config["patch_stride"]
    if height != width or stride[0] != stride[1]:
        raise ConvertError(
            f"{where}: input_size {config['input_size']} and patch_stride {config['patch_stride']}"
            " of its config.json must be square"
        )
    hidden_size = config["embed_dim"] * WIDENED
    return {
        "kind": "hiera",
        "image_size": width,
        "patch_size": stride[0] * WIDENED,
        "hidden_size": hidden_size,
        "intermediate_size": inner_width(hidden_size, config["mlp_ratio"], where),
        "num_layers": sum(config["stages"]),
        "num_heads": config["num_heads"] * WIDENED,
        "activation": "gelu",
        "num_frames": frames,
        "tubelet": tubelet,
        "stages": tuple(config["stages"]),
    }


def _check_list(value: Any, ranges: tuple[Any, ...], where: str) -> None:
    if not isinstance(value, list) or len(value) != len(ranges):
        raise ConvertError(f"{where} is {value!r}; it must be a list of {len(ranges)} numbers")
    for number, allowed in zip(value, ranges, strict=True):
        try:
            allowed.check("an entry", number)
        except ConfigError as error:
            raise ConvertError(f"{where}: {error}") from None


def table(config: Mapping[str, Any], teacher: TeacherConfig, store: TensorStore) -> Table:
    """The tensor names of a folder for a run's `config.teacher`.

    Raises:
      ConvertError: numbers of the configuration that differ from the run's.
    """
    refuse_differences(read_config(config, str(store.path)), teacher, store)
    norm = "encoder_norm" if "encoder_norm.weight" in store.names() else "norm"
    rules = (
        *weight_and_bias("vision/patch", "patch_embed.proj", pattern=CONVOLUTION),
        Rule("vision/space_embedding", "pos_embed_spatial", PLACES),
        Rule("vision/time_embedding", "pos_embed_temporal", PLACES),
        *_stage_rules(teacher.stages),
        *weight_and_bias("vision/post_norm", norm, "scale"),
    )
    # Heads are as wide in every stage.
    return Table(rules, {"dim": teacher.hidden_size // teacher.num_heads}, ignored=IGNORED)


def _stage_rules(stages: tuple[int, ...]) -> Iterator[Rule]:
    """The rules of all blocks; the first one of each stage but stage 1 pools, and is no other's."""
    first = 0
    for stage, depth in enumerate(stages, start=1):
        plain = first
        if stage > 1:
            pool, at = f"vision/pool{stage}/", f"blocks.{first}."
            yield from _block_rules(pool, at)
            yield from weight_and_bias(f"{pool}skip", f"{at}proj", pattern=LINEAR)
            plain += 1
        for rule in _block_rules(f"vision/stage{stage}/", "blocks.{}."):
            yield dataclasses.replace(rule, first=plain)
        first += depth


def _block_rules(ours: str, theirs: str) -> Iterator[Rule]:
    for i in (1, 2):
        yield from weight_and_bias(f"{ours}norm{i}", f"{theirs}norm{i}", "scale")
        yield from weight_and_bias(f"{ours}fc{i}", f"{theirs}mlp.fc{i}", pattern=LINEAR)
    for k, name in enumerate(("query", "key", "value")):
        projection = f"{theirs}attn.qkv"
        yield Rule(f"{ours}{name}_kernel", f"{projection}.weight", HEADS_IN, part=(k, 3))
        yield Rule(f"{ours}{name}_bias", f"{projection}.bias", HEADS_IN_BIAS, part=(k, 3))
    yield from weight_and_bias(f"{ours}out", f"{theirs}attn.proj", pattern=HEADS_OUT)
