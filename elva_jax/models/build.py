"""From a run's configuration to models and towers, and the shapes of their parameters."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from elva_jax.errors import ConfigError
from elva_jax.models.config import (
    DecoderConfig,
    ElvaConfig,
    EvaClipConfig,
    PatchEmbedConfig,
    SiglipConfig,
)
from elva_jax.models.elva import Elva, smallest_inputs
from elva_jax.models.towers.eva_clip import EvaClipVision
from elva_jax.models.towers.siglip import SiglipVision
from elva_jax.ops.merging import MergeLayer, Merging
from elva_jax.ops.rope import RopeScaling
from elva_jax.utils.trees import flatten_paths

TOWER = ("image_size", "patch_size", "hidden_size", "intermediate_size", "num_layers", "num_heads")


def config_from_dict(model: ConfigDict, teacher: ConfigDict | None = None) -> ElvaConfig:
    """ElvaConfig of a run configuration's group `model` (elva_jax.config.schema.model); an encoder-based one needs its group `teacher` too.

    Raises:
      ConfigError: the merge_* tuples have different lengths, or there is no tower for patch_embed = encoder.
    """
    encoder = model.patch_embed == "encoder"
    if encoder and teacher is None:
        raise ConfigError(
            "model.patch_embed: encoder needs the vision tower that the group teacher describes"
        )
    merge = {
        key: tuple(model[key])
        for key in ("merge_layers", "merge_policies", "merge_thresholds", "merge_ratios")
    }
    for key, values in merge.items():
        if len(values) != len(merge["merge_layers"]):
            raise ConfigError(
                f"model.{key}: needs one entry for each of merge_layers = {merge['merge_layers']}, has {len(values)}"
            )
    decoder = DecoderConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        rope_theta=float(model.rope_theta),
        rope_scaling=RopeScaling(
            model.rope_scaling, float(model.rope_factor), model.rope_original_max_position
        ),
        rms_norm_eps=model.rms_norm_eps,
        tie_embeddings=model.tie_embeddings,
        max_position=model.max_position,
        attention_bias=model.attention_bias,
    )
    return ElvaConfig(
        decoder=decoder,
        patch=PatchEmbedConfig(
            model.patch_size, model.patch_width, model.patch_embed, model.patch_heads
        ),
        merge=Merging(
            tuple(MergeLayer(*rule) for rule in zip(*merge.values(), strict=True)),
            model.merge_lines,
        ),
        dtype=model.dtype,
        remat=model.remat,
        attention=model.attention,
        tower=tower_config(teacher) if encoder else None,
    )


def tower_config(teacher: ConfigDict, vocab_size: int = 0) -> SiglipConfig | EvaClipConfig:
    """Vision tower of a run configuration's group `teacher`; with a vocabulary also SigLIP's text tower, where the group has one."""
    shared = {key: teacher[key] for key in TOWER}
    if teacher.kind != "siglip":
        return EvaClipConfig(**shared, second=teacher.kind == "eva02_clip")
    if not (vocab_size and teacher.text_layers):
        return SiglipConfig(**shared)
    return SiglipConfig(
        **shared,
        vocab_size=vocab_size,
        text_layers=teacher.text_layers,
        text_length=teacher.text_length,
    )


def parameter_shapes(config: ConfigDict, kind: str) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters of the ELVA (kind elva) or the vision tower (kind teacher) of a run, by '/'-joined path."""
    key = jax.random.key(0)
    if kind == "teacher":
        side = config.teacher.image_size
        tree = {
            "vision": jax.eval_shape(vision_tower(config).init, key, jnp.zeros((1, side, side, 3)))[
                "params"
            ]
        }
    else:
        model = config_from_dict(config.model, config.teacher)
        tree = {"elva": jax.eval_shape(Elva(model).init, key, *smallest_inputs(model))["params"]}
    return {path: leaf.shape for path, leaf in flatten_paths(nn.meta.unbox(tree)).items()}


def teacher_config(config: ConfigDict) -> SiglipConfig | EvaClipConfig:
    """Configuration of the group `teacher`; SigLIP's text tower reads the run's tokenizer."""
    return tower_config(config.teacher, config.model.vocab_size)


def vision_tower(config: ConfigDict) -> SiglipVision | EvaClipVision:
    """The teacher's vision tower: pixels in [-1, 1] to `penultimate`, `last` and `pooled` features."""
    return (SiglipVision if config.teacher.kind == "siglip" else EvaClipVision)(
        teacher_config(config), config.teacher.dtype
    )
