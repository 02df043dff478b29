"""ViViT: config.json to `config.teacher`, and tensor names as on the hub.

Published folders hold a video classifier, whose tower has the prefix "vivit.".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from elva_jax.config.schema import TeacherConfig
from elva_jax.errors import ConvertError
from elva_jax.hf.param_mapping import LINEAR, Rule, Table
from elva_jax.hf.siglip import (
    EPS,
    SAME,
    attention_rules,
    axis_sizes,
    read_activation,
    refuse_differences,
    weight_and_bias,
)
from elva_jax.hf.tensor_store import TensorStore
from elva_jax.utils.numbers import shown

MODEL_TYPES: tuple[str, ...] = ("vivit",)
FRAMES, TUBELET = 32, (2, 16, 16)  # defaults of transformers' VivitConfig
# The classifier and its pooling, which the tower's features do not pass through.
IGNORED = (r"classifier\..*", r"(vivit\.)?pooler\..*")
PLACES = "1 place width -> place width"
TUBES = "width channel time row column -> (time row column channel) width"  # of the convolution


def _layer_rules() -> Iterator[Rule]:
    ours, theirs = "vision/layers/", "vivit.encoder.layer.{}."
    for i, norm, fc in ((1, "layernorm_before", "intermediate"), (2, "layernorm_after", "output")):
        yield from weight_and_bias(f"{ours}norm{i}", f"{theirs}{norm}", "scale")
        yield from weight_and_bias(f"{ours}fc{i}", f"{theirs}{fc}.dense", pattern=LINEAR)
    inputs = [f"{theirs}attention.attention.{name}" for name in ("query", "key", "value")]
    yield from attention_rules(ours, inputs, f"{theirs}attention.output.dense")


_EMBEDDINGS = "vivit.embeddings."
RULES = (
    *weight_and_bias("vision/patch", f"{_EMBEDDINGS}patch_embeddings.projection", pattern=TUBES),
    Rule("vision/class_token", f"{_EMBEDDINGS}cls_token", PLACES),
    Rule("vision/position_embedding", f"{_EMBEDDINGS}position_embeddings", PLACES),
    *_layer_rules(),
    *weight_and_bias("vision/post_norm", "vivit.layernorm", "scale"),
)


def read_config(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values of `config.teacher` from config.json.

    Raises:
      ConvertError: a feature that our tower lacks, or tubes that are no cubes of frames and pixels.
    """
    for key, only in {"qkv_bias": True, "layer_norm_eps": EPS, "num_channels": 3}.items():
        if (value := config.get(key, only)) != only:
            raise ConvertError(
                f"{where}: {key} of its config.json is {shown(value)}; the tower supports only"
                f" {only}"
            )
    frames, tube = config.get("num_frames", FRAMES), config.get("tubelet_size", TUBELET)
    sound = isinstance(tube, (list, tuple)) and [type(size) for size in tube] == [int] * 3
    if not sound or min(tube) < 1 or tube[1] != tube[2] or frames % tube[0]:
        raise ConvertError(
            f"{where}: tubelet_size of its config.json is {shown(tube)}; the tower needs [frames,"
            f" edge, edge] with a number of frames that divides num_frames = {frames}"
        )
    shape = {ours: config.get(theirs, default) for ours, (theirs, default) in SAME.items()}
    return {
        "kind": "vivit",
        **shape,
        "patch_size": tube[1],
        "num_frames": frames,
        "tubelet": tube[0],
        "activation": read_activation(config, "gelu_fast", where),
        "features": "last",
    }


def table(config: Mapping[str, Any], teacher: TeacherConfig, store: TensorStore) -> Table:
    """The tensor names of a folder for a run's `config.teacher`.

    Raises:
      ConvertError: numbers of config.json that differ from the run's. The choice of `features` is
        the run's own.
    """
    theirs = read_config(config, str(store.path))
    del theirs["features"]
    refuse_differences(theirs, teacher, store)
    sizes = {**axis_sizes(teacher), "time": teacher.tubelet}
    return Table(RULES, sizes, prefix="vivit.", ignored=IGNORED)
