"""EVA-CLIP vision towers: the model's configuration to `config.teacher`, and the names of their tensors.

The layout is that of the authors' public checkpoints (EVA01_CLIP_g_14_*.pt, EVA02_CLIP_L_*.pt and so on, class EVAVisionTransformer):
names such as visual.blocks.0.attn.proj.weight, with or without "visual.". Those files come without a config.json; the authors' own file of
the model (eva_clip/model_configs/EVA01-CLIP-g-14.json and so on), which holds a "vision_cfg", is to be put beside them under that name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from elva_jax.errors import ConvertError
from elva_jax.hf.param_mapping import Rule, Table
from elva_jax.hf.safetensors_io import Store
from elva_jax.hf.siglip import refuse_differences

# The text tower, CLIP's projection, tables that follow from the configuration, and what only masked pre-training needs.
IGNORED = (
    r"text\..*",
    r"logit_scale",
    r"(visual\.)?head\..*",
    r".*rope\.freqs_(cos|sin)",
    r"(visual\.)?mask_token",
)


def _shared_rules() -> Iterator[Rule]:
    yield Rule("vision/patch_kernel", "visual.patch_embed.proj.weight", "c t p q -> (p q t) c")
    yield Rule("vision/patch_bias", "visual.patch_embed.proj.bias")
    yield Rule("vision/class_token", "visual.cls_token", "u n c -> (u n) c")
    yield Rule("vision/position_embedding", "visual.pos_embed", "u s c -> (u s) c")
    ours, theirs = "vision/layers/", "visual.blocks.{}."
    for i in (1, 2):
        yield Rule(f"{ours}norm{i}_scale", f"{theirs}norm{i}.weight")
        yield Rule(f"{ours}norm{i}_bias", f"{theirs}norm{i}.bias")
    for name in ("query", "value"):
        yield Rule(f"{ours}{name}_bias", f"{theirs}attn.{name[0]}_bias", "(h d) -> h d")
    yield Rule(f"{ours}out_kernel", f"{theirs}attn.proj.weight", "c (h d) -> h d c")
    yield Rule(f"{ours}out_bias", f"{theirs}attn.proj.bias")
    yield Rule("vision/post_norm_scale", "visual.norm.weight")
    yield Rule("vision/post_norm_bias", "visual.norm.bias")


def _first_rules() -> Iterator[Rule]:
    ours, theirs = "vision/layers/", "visual.blocks.{}."
    for k, name in enumerate(("query", "key", "value")):
        yield Rule(
            f"{ours}{name}_kernel", f"{theirs}attn.qkv.weight", "(h d) c -> c h d", part=(k, 3)
        )
    yield from _linear_rules({"fc1": "mlp.fc1", "fc2": "mlp.fc2"})


def _second_rules() -> Iterator[Rule]:
    ours, theirs = "vision/layers/", "visual.blocks.{}."
    for name in ("query", "key", "value"):
        yield Rule(
            f"{ours}{name}_kernel", f"{theirs}attn.{name[0]}_proj.weight", "(h d) c -> c h d"
        )
    for name, norm in (("attention_norm", "attn.inner_attn_ln"), ("mlp_norm", "mlp.ffn_ln")):
        yield Rule(f"{ours}{name}_scale", f"{theirs}{norm}.weight")
        yield Rule(f"{ours}{name}_bias", f"{theirs}{norm}.bias")
    yield from _linear_rules({"gate": "mlp.w1", "fc1": "mlp.w2", "fc2": "mlp.w3"})


def _linear_rules(names: Mapping[str, str]) -> Iterator[Rule]:
    for ours, theirs in names.items():
        yield Rule(
            f"vision/layers/{ours}_kernel", f"visual.blocks.{{}}.{theirs}.weight", "o i -> i o"
        )
        yield Rule(f"vision/layers/{ours}_bias", f"visual.blocks.{{}}.{theirs}.bias")


RULES = {
    "eva_clip": (*_shared_rules(), *_first_rules()),
    "eva02_clip": (*_shared_rules(), *_second_rules()),
}


def is_eva_clip(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is the authors' of an EVA-CLIP."""
    return "eva_model_name" in (config.get("vision_cfg") or {})


def read_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values of `config.teacher` from the authors' configuration.

    Raises:
      ConvertError: no EVA-CLIP, a key that is missing, or a variant that the tower has not (such as the post-norm of EVA02-CLIP-E).
    """
    vision = config.get("vision_cfg") or {}
    if missing := [
        key
        for key in ("image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio")
        if key not in vision
    ]:
        raise ConvertError(
            f"{where}: the vision_cfg of its config.json lacks {', '.join(missing)}; take the authors' file of the model"
        )
    modern = [bool(vision.get(key)) for key in ("rope", "naiveswiglu", "subln")]
    grid = vision["image_size"] // vision["patch_size"]
    scaled = not modern[0] or (
        vision.get("pt_hw_seq_len", 16) == 16 and (vision.get("intp_freq") or grid == 16)
    )
    plain = not any(
        vision.get(key)
        for key in ("postnorm", "global_average_pool", "ls_init_value", "use_mean_pooling")
    )
    if len(set(modern)) > 1 or not scaled or not plain or not vision.get("qkv_bias", True):
        raise ConvertError(
            f"{where}: only EVA01-CLIP, and EVA02-CLIP with rope, naiveswiglu and subln on a grid of 16, can be read"
        )
    return {
        "kind": "eva02_clip" if modern[0] else "eva_clip",
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "hidden_size": vision["width"],
        "intermediate_size": int(vision["width"] * vision["mlp_ratio"]),
        "num_layers": vision["layers"],
        "num_heads": vision["width"] // vision["head_width"],
    }


def table(config: Mapping[str, Any], teacher: Mapping[str, Any], store: Store) -> Table:
    """Where the tower's parameters lie in a store, for a run's `config.teacher`.

    Raises:
      ConvertError: numbers of the configuration that differ from the run's.
    """
    refuse_differences(read_config(config, str(store.path)), teacher, store)
    patch, heads = teacher["patch_size"], teacher["num_heads"]
    sizes = {
        "p": patch,
        "q": patch,
        "t": 3,
        "u": 1,
        "n": 1,
        "h": heads,
        "d": teacher["hidden_size"] // heads,
    }
    return Table(RULES[teacher["kind"]], sizes, prefix="visual.", ignored=IGNORED)
