"""EVA-CLIP vision towers: the authors' configuration to `config.teacher`, and tensor names.

Tensors are named as in the authors' published checkpoints (EVA01_CLIP_g_14_*.pt and so on, class
EVAVisionTransformer), for example visual.blocks.0.attn.proj.weight, with or without "visual.".
Those files come without a config.json: put the authors' file for the model beside them under that
name; it holds a "vision_cfg" (eva_clip/model_configs/EVA01-CLIP-g-14.json and so on).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from elva_jax.config.schema import TeacherConfig
from elva_jax.errors import ConvertError
from elva_jax.hf.param_mapping import LINEAR, Rule, Table
from elva_jax.hf.siglip import (
    HEADS_IN,
    HEADS_IN_BIAS,
    HEADS_OUT,
    PATCHES,
    axis_sizes,
    inner_width,
    refuse_differences,
    weight_and_bias,
)
from elva_jax.hf.tensor_store import TensorStore

MODEL_TYPES: tuple[str, ...] = ()  # the authors' files have none; see `is_eva_clip`
# The text tower, CLIP's projection, tables that follow from the configuration, and the mask token,
# which only masked pre-training needs.
IGNORED = (
    r"text\..*",
    r"logit_scale",
    r"(visual\.)?head\..*",
    r".*rope\.freqs_(cos|sin)",
    r"(visual\.)?mask_token",
)
_OURS, _THEIRS = "vision/layers/", "visual.blocks.{}."


def _shared_rules() -> Iterator[Rule]:
    yield from weight_and_bias("vision/patch", "visual.patch_embed.proj", pattern=PATCHES)
    yield Rule("vision/class_token", "visual.cls_token", "1 1 width -> 1 width")
    yield Rule("vision/position_embedding", "visual.pos_embed", "1 place width -> place width")
    for i in (1, 2):
        yield from weight_and_bias(f"{_OURS}norm{i}", f"{_THEIRS}norm{i}", "scale")
    for name in ("query", "value"):
        yield Rule(f"{_OURS}{name}_bias", f"{_THEIRS}attn.{name[0]}_bias", HEADS_IN_BIAS)
    yield from weight_and_bias(f"{_OURS}out", f"{_THEIRS}attn.proj", pattern=HEADS_OUT)
    yield from weight_and_bias("vision/post_norm", "visual.norm", "scale")


def _eva01_rules() -> Iterator[Rule]:
    for k, name in enumerate(("query", "key", "value")):
        yield Rule(f"{_OURS}{name}_kernel", f"{_THEIRS}attn.qkv.weight", HEADS_IN, part=(k, 3))
    for name in ("fc1", "fc2"):
        yield from weight_and_bias(f"{_OURS}{name}", f"{_THEIRS}mlp.{name}", pattern=LINEAR)


def _eva02_rules() -> Iterator[Rule]:
    for name in ("query", "key", "value"):
        yield Rule(f"{_OURS}{name}_kernel", f"{_THEIRS}attn.{name[0]}_proj.weight", HEADS_IN)
    for ours, theirs in (("attention_norm", "attn.inner_attn_ln"), ("mlp_norm", "mlp.ffn_ln")):
        yield from weight_and_bias(f"{_OURS}{ours}", f"{_THEIRS}{theirs}", "scale")
    for ours, theirs in (("gate", "mlp.w1"), ("fc1", "mlp.w2"), ("fc2", "mlp.w3")):
        yield from weight_and_bias(f"{_OURS}{ours}", f"{_THEIRS}{theirs}", pattern=LINEAR)


RULES = {
    "eva_clip": (*_shared_rules(), *_eva01_rules()),
    "eva02_clip": (*_shared_rules(), *_eva02_rules()),
}


def is_eva_clip(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is that of an EVA-CLIP, as its authors publish it."""
    return "eva_model_name" in (config.get("vision_cfg") or {})


def read_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values of `config.teacher` from the authors' configuration.

    Raises:
      ConvertError: not an EVA-CLIP, a missing key, or a variant that our tower lacks (such as the
        post-norm of EVA02-CLIP-E).
    """
    vision = config.get("vision_cfg") or {}
    needed = ("image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio")
    if missing := [key for key in needed if key not in vision]:
        raise ConvertError(
            f"{where}: the vision_cfg of its config.json lacks {', '.join(missing)}; use the"
            " authors' file for the model"
        )
    eva02 = [bool(vision.get(key)) for key in ("rope", "naiveswiglu", "subln")]
    if vision["width"] % vision["head_width"]:
        raise ConvertError(
            f"{where}: vision_cfg.head_width = {vision['head_width']} of its config.json does not"
            f" divide width = {vision['width']}"
        )
    grid = vision["image_size"] // vision["patch_size"]
    known_rope = not eva02[0] or (
        vision.get("pt_hw_seq_len", 16) == 16 and (vision.get("intp_freq") or grid == 16)
    )
    lacking = ("postnorm", "global_average_pool", "ls_init_value", "use_mean_pooling")
    plain = vision.get("qkv_bias", True) and not any(vision.get(key) for key in lacking)
    if len(set(eva02)) > 1 or not known_rope or not plain:
        raise ConvertError(
            f"{where}: only EVA01-CLIP, and EVA02-CLIP with rope, naiveswiglu and subln on a grid"
            " of 16, can be read"
        )
    return {
        "kind": "eva02_clip" if eva02[0] else "eva_clip",
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "hidden_size": vision["width"],
        "intermediate_size": inner_width(vision["width"], vision["mlp_ratio"], where),
        "num_layers": vision["layers"],
        "num_heads": vision["width"] // vision["head_width"],
    }


def table(config: Mapping[str, Any], teacher: TeacherConfig, store: TensorStore) -> Table:
    """The tensor names of a folder for a run's `config.teacher`.

    Raises:
      ConvertError: numbers of the configuration that differ from the run's.
    """
    refuse_differences(read_config(config, str(store.path)), teacher, store)
    rules = RULES[teacher.kind]
    return Table(rules, axis_sizes(teacher), prefix="visual.", ignored=IGNORED)
