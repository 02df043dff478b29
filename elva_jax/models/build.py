"""From a run's `config.model` to the frozen configuration that modules take."""

from __future__ import annotations

from ml_collections import ConfigDict

from elva_jax.errors import ConfigError
from elva_jax.models.config import DecoderConfig, ElvaConfig, MergeConfig, MergeLayer, PatchEmbedConfig, RopeScaling


def config_from_dict(model: ConfigDict) -> ElvaConfig:
    """ElvaConfig of the group `model` of a run configuration (elva_jax.config.base.model).

    Raises:
      ConfigError: the merge_* tuples have different lengths.
    """
    merge = {key: tuple(model[key]) for key in ("merge_layers", "merge_policies", "merge_thresholds", "merge_ratios")}
    for key, values in merge.items():
        if len(values) != len(merge["merge_layers"]):
            raise ConfigError(f"model.{key}: needs one entry for each of merge_layers = {merge['merge_layers']}, has {len(values)}")
    decoder = DecoderConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        rope_theta=float(model.rope_theta),
        rope_scaling=RopeScaling(model.rope_scaling, float(model.rope_factor), model.rope_original_max_position),
        rms_norm_eps=model.rms_norm_eps,
        tie_embeddings=model.tie_embeddings,
        max_position=model.max_position,
        attention_bias=model.attention_bias,
    )
    return ElvaConfig(
        decoder=decoder,
        patch=PatchEmbedConfig(model.patch_size, model.patch_width, model.patch_embed, model.patch_heads),
        merge=MergeConfig(tuple(MergeLayer(*rule) for rule in zip(*merge.values(), strict=True)), model.merge_lines),
        dtype=model.dtype,
        remat=model.remat,
        attention=model.attention,
    )
