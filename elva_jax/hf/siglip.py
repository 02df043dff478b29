"""SigLIP and SigLIP 2 (fixed resolution) vision towers of Hugging Face: config.json to `config.teacher`; names of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from elva_jax.errors import ConvertError
from elva_jax.hf.param_mapping import Rule, Table
from elva_jax.hf.safetensors_io import Store

MODEL_TYPES = ("siglip", "siglip_vision_model")
# Ours in config.teacher -> theirs, and transformers' default (SiglipVisionConfig), since public files leave defaults out.
SAME = {
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 16),
    "hidden_size": ("hidden_size", 768),
    "intermediate_size": ("intermediate_size", 3072),
    "num_layers": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 12),
}
EPS = 1e-6
PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}


def _layer_rules() -> Iterator[Rule]:
    ours, theirs = "vision/layers/", "vision_model.encoder.layers.{}."
    for i in (1, 2):
        yield Rule(f"{ours}norm{i}_scale", f"{theirs}layer_norm{i}.weight")
        yield Rule(f"{ours}norm{i}_bias", f"{theirs}layer_norm{i}.bias")
        yield Rule(f"{ours}fc{i}_kernel", f"{theirs}mlp.fc{i}.weight", "o i -> i o")
        yield Rule(f"{ours}fc{i}_bias", f"{theirs}mlp.fc{i}.bias")
    for name, projection in PROJECTIONS.items():
        yield Rule(
            f"{ours}{name}_kernel", f"{theirs}self_attn.{projection}.weight", "(h d) c -> c h d"
        )
        yield Rule(f"{ours}{name}_bias", f"{theirs}self_attn.{projection}.bias", "(h d) -> h d")
    yield Rule(f"{ours}out_kernel", f"{theirs}self_attn.out_proj.weight", "c (h d) -> h d c")
    yield Rule(f"{ours}out_bias", f"{theirs}self_attn.out_proj.bias")


def _head_rules() -> Iterator[Rule]:
    """Attention pooling; PyTorch's MultiheadAttention holds queries, keys and values in one matrix."""
    ours, theirs = "vision/head/", "vision_model.head."
    yield Rule(f"{ours}probe", f"{theirs}probe", "u n c -> (u n) c")
    for k, name in enumerate(PROJECTIONS):
        yield Rule(
            f"{ours}{name}_kernel",
            f"{theirs}attention.in_proj_weight",
            "(h d) c -> c h d",
            part=(k, 3),
        )
        yield Rule(
            f"{ours}{name}_bias", f"{theirs}attention.in_proj_bias", "(h d) -> h d", part=(k, 3)
        )
    yield Rule(f"{ours}out_kernel", f"{theirs}attention.out_proj.weight", "c (h d) -> h d c")
    yield Rule(f"{ours}out_bias", f"{theirs}attention.out_proj.bias")
    yield Rule(f"{ours}norm_scale", f"{theirs}layernorm.weight")
    yield Rule(f"{ours}norm_bias", f"{theirs}layernorm.bias")
    for i in (1, 2):
        yield Rule(f"{ours}fc{i}_kernel", f"{theirs}mlp.fc{i}.weight", "o i -> i o")
        yield Rule(f"{ours}fc{i}_bias", f"{theirs}mlp.fc{i}.bias")


RULES = (
    Rule(
        "vision/patch_kernel",
        "vision_model.embeddings.patch_embedding.weight",
        "c t p q -> (p q t) c",
    ),
    Rule("vision/patch_bias", "vision_model.embeddings.patch_embedding.bias"),
    Rule("vision/position_embedding", "vision_model.embeddings.position_embedding.weight"),
    *_layer_rules(),
    Rule("vision/post_norm_scale", "vision_model.post_layernorm.weight"),
    Rule("vision/post_norm_bias", "vision_model.post_layernorm.bias"),
    *_head_rules(),
)
IGNORED = (r"text_model\..*", r"logit_(scale|bias)", r"(vision_model\.)?embeddings\.position_ids")


def read_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values of `config.teacher` from config.json.

    Raises:
      ConvertError: another architecture, or a feature that the tower lacks.
    """
    kind = config.get("model_type")
    if kind == "siglip2":
        raise ConvertError(
            f"{where}: is a SigLIP 2 of variable resolution (NaFlex); give one of fixed resolution, such as patch14-384"
        )
    if kind not in MODEL_TYPES:
        raise ConvertError(
            f"{where}: model_type is {kind!r}; the tower reads {', '.join(MODEL_TYPES)}"
        )
    vision = config.get("vision_config") or {} if kind == "siglip" else config
    activation, eps = (
        vision.get("hidden_act", "gelu_pytorch_tanh"),
        vision.get("layer_norm_eps", EPS),
    )
    if activation != "gelu_pytorch_tanh" or eps != EPS:
        raise ConvertError(
            f"{where}: hidden_act {activation!r} with layer_norm_eps {eps}; the tower has gelu_pytorch_tanh and {EPS} only"
        )
    return {
        "kind": "siglip",
        **{ours: vision.get(theirs, default) for ours, (theirs, default) in SAME.items()},
    }


def table(config: Mapping[str, Any], teacher: Mapping[str, Any], store: Store) -> Table:
    """Where the tower's parameters lie in a store, for a run's `config.teacher`. A tower without a pooling head gets one of zeros.

    Raises:
      ConvertError: numbers of config.json that differ from the run's.
    """
    refuse_differences(read_config(config, str(store.path)), teacher, store)
    vision = config.get("vision_config") or {} if config["model_type"] == "siglip" else config
    rules = RULES
    if not vision.get("vision_use_head", True):
        rules = tuple(
            rule._replace(zeros=True) if rule.ours.startswith("vision/head/") else rule
            for rule in rules
        )
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
    return Table(rules, sizes, prefix="vision_model.", ignored=IGNORED)


def refuse_differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], store: Store) -> None:
    """Raises ConvertError where config.json and `config.teacher` are not about the same tower."""
    differ = [
        f"{key} is {value}, the run has teacher.{key} = {ours[key]}"
        for key, value in theirs.items()
        if value != ours[key]
    ]
    if differ:
        raise ConvertError(f"{store.path}: {'; '.join(differ)}")
