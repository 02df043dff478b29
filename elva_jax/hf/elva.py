"""ELVA's own Hugging Face folder: its config.json and the names of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from elva_jax.config import schema
from elva_jax.config.check import check_key
from elva_jax.config.schema import ModelConfig
from elva_jax.data.tokenizer import VISUAL_TOKENS
from elva_jax.errors import ConfigError, ConvertError
from elva_jax.hf import qwen2, rope
from elva_jax.hf.param_mapping import LINEAR, Rule, Table
from elva_jax.hf.tensor_store import TensorStore, read_json

MODEL_TYPE = "elva"
RUN_FILE = "elva_jax.json"  # the configuration of the run that a folder was exported from
FRAME, PATCH, LINE = VISUAL_TOKENS
# Keys of both a stage's `data` and processor_config.json.
MEDIA = ("longest_edge", "upscale", "num_frames", "fps")

# Our name in config.model -> theirs in config.json, where the values are the same.
_SAME = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "rms_norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "max_position": "max_position_embeddings",
    "attention_bias": "attention_bias",
    "patch_size": "patch_size",
    "patch_width": "patch_width",
    "patch_embed": "patch_embed",
    "patch_heads": "patch_heads",
    "pixel_mean": "pixel_mean",
    "pixel_std": "pixel_std",
    "merge_layers": "merge_layers",
    "merge_policies": "merge_policies",
    "merge_thresholds": "merge_thresholds",
    "merge_ratios": "merge_ratios",
    "merge_lines": "merge_lines",
    "merge_survivor": "merge_survivor",
}
# Folders of earlier versions lack these, and have the defaults.
_NEWER = ("merge_survivor", "pixel_mean", "pixel_std")
_AUTO_MAP = {
    "AutoConfig": "configuration_elva.ElvaConfig",
    "AutoModel": "modeling_elva.ElvaModel",
    **dict.fromkeys(
        # Causal language models, those of `pipeline("image-text-to-text")` and of "any-to-any".
        ("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM"),
        "modeling_elva.ElvaForCausalLM",
    ),
    "AutoProcessor": "processing_elva.ElvaProcessor",
    "AutoImageProcessor": "image_processing_elva.ElvaImageProcessor",
    "AutoVideoProcessor": "video_processing_elva.ElvaVideoProcessor",
}


def to_hf_config(
    model: ModelConfig, dtype: str, visual_ids: tuple[int, int, int], **others: Any
) -> dict[str, Any]:
    """The folder's config.json.

    Args:
      model: a run's `config.model`.
      dtype: dtype of the exported weights.
      visual_ids: ids that stand for `<FRAME>`, `<PATCH>` and `<LINE>` in input_ids.
      **others: pad_token_id, eos_token_id, system_prompt.
    """
    values = {theirs: getattr(model, ours) for ours, theirs in _SAME.items()}
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["ElvaForCausalLM"],
        "auto_map": _AUTO_MAP,
        "dtype": dtype,
        **{key: list(v) if isinstance(v, tuple) else v for key, v in values.items()},
        "rope_parameters": rope.write(model),
        "merging": bool(model.merge_layers),
        **dict(zip(("frame_token_id", "patch_token_id", "line_token_id"), visual_ids, strict=True)),
        **others,
    }


def from_hf_config(config: Mapping[str, Any]) -> ConfigDict:
    """A run's `config.model` from the folder's config.json, with defaults for keys not in it.

    Raises:
      ConvertError: it describes another model, or lacks a key.
    """
    if (kind := config.get("model_type")) != MODEL_TYPE:
        raise ConvertError(f"config.json: model_type is {kind!r}, not {MODEL_TYPE!r}")
    present = {*config, *_NEWER}
    if missing := [key for key in (*_SAME.values(), "rope_parameters") if key not in present]:
        raise ConvertError(f"config.json: lacks {', '.join(missing)}")
    model = schema.model()
    for ours, theirs in _SAME.items():
        if theirs not in config:
            continue
        value = tuple(config[theirs]) if isinstance(config[theirs], list) else config[theirs]
        try:
            check_key(ModelConfig, ours, value, theirs)
        except ConfigError as error:
            raise ConvertError(f"config.json: {error}") from None
        model[ours] = value
    scaling = rope.read(config["rope_parameters"] or {}, model.max_position, "config.json")
    if scaling["rope_scaling"] == "default":  # what is not written has its default
        del scaling["rope_original_max_position"]
    model.update(scaling)
    model.dtype = "float32" if config.get("dtype", "float32") == "float32" else "bfloat16"
    return model


def data_settings(folder: Path) -> dict[str, Any]:
    """How a folder's processor reads media and conversations, as values for a stage's `data`."""
    config, processor = (
        read_json(folder / name) if (folder / name).is_file() else {}
        for name in ("config.json", "processor_config.json")
    )
    media = processor.get("image_processor") or {}
    found = {name: media[name] for name in MEDIA if name in media}
    prompt = config.get("system_prompt", "")
    return {**found, "fps": float(found.get("fps", 0.0)), "system_prompt": prompt}


# Settings that shapes do not show, so that a difference would go unnoticed. RoPE's context and the
# merging layers are left to the run.
STRICT = (
    *qwen2.STRICT,
    "patch_size",
    "patch_heads",
    "patch_embed",
    "pixel_mean",
    "pixel_std",
    "tie_embeddings",
)

# Parameters of `models.elva.Elva`; the decoder's tensors are named as in Qwen2.
TABLE = Table(
    (
        *qwen2.RULES,
        Rule("patch_embed/proj/kernel", "model.patch_embed.proj.weight", LINEAR),
        Rule("patch_embed/proj/bias", "model.patch_embed.proj.bias"),
        Rule("patch_embed/frame", "model.patch_embed.frame_token"),
        Rule("patch_embed/line", "model.patch_embed.line_token"),
        *(
            Rule(f"patch_embed/{name}_kernel", f"model.patch_embed.{name}_proj.weight", LINEAR)
            for name in "qkv"
        ),
        Rule("patch_embed/out_proj/kernel", "model.patch_embed.out_proj.weight", LINEAR),
    )
)


def table(config: Mapping[str, Any], model: ModelConfig, store: TensorStore) -> Table:
    """The tensor names of a folder for a run's `config.model`.

    Raises:
      ConvertError: settings of config.json that differ from the run's.
    """
    if differ := qwen2.differences(from_hf_config(config), model, STRICT):
        raise ConvertError(f"{store.path}: {'; '.join(differ)}")
    return TABLE
