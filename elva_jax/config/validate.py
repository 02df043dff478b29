"""Refusing a configuration before anything starts.

`check` compares every key with the schema: its name, type, allowed values and range.
`check_contradictions` refuses values that cannot work together, and names both keys.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from elva_jax.config.mixtures import parse_sampling
from elva_jax.config.schema import Config, DataConfig, SourceConfig, StageConfig, key_types, keys
from elva_jax.errors import ConfigError

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FILES = (".json", ".jsonl", ".csv", ".tar")  # endings of sources that are files; others are TFDS


def nearest(wrong: object, allowed: Iterable[object]) -> str:
    """The end of a message about a wrong name: the most similar allowed one, if there is any."""
    near = difflib.get_close_matches(str(wrong), list(map(str, allowed)), 1, 0)
    return f"; did you mean {near[0]}?" if near else ""


def _require(condition: object, key: str, problem: str) -> None:
    if not condition:
        raise ConfigError(f"{key}: {problem}")


def check(cls: Any, values: Any, prefix: str = "") -> None:
    """Compares a group with its class in the schema.

    Args:
      cls: the class, such as `schema.Config`.
      values: the group as a ConfigDict or a plain mapping.
      prefix: what the names of its keys begin with, such as `stages.video.`.

    Raises:
      ConfigError: the first key that is unknown, missing or wrong, and the nearest right one.
    """
    _require(
        isinstance(values, Mapping) or hasattr(values, "items"),
        prefix.removesuffix(".") or "config",
        f"expected a group of settings, got {values!r}",
    )
    known = keys(cls)
    for name in values:
        if name not in known:
            raise ConfigError(f"{prefix}{name}: no such key{nearest(name, known)}")
    for name, field in known.items():
        key, kind = prefix + name, key_types(cls)[name]
        _require(name in values, key, "missing; start the config from elva_jax.config.schema")
        if dataclasses.is_dataclass(kind):
            check(kind, values[name], f"{key}.")
        elif "named" in field.metadata:
            check_names(values[name], key)
            for label, inner in values[name].items():
                check(field.metadata["named"], inner, f"{key}.{label}.")
        elif typing.get_origin(kind) is tuple:
            _require(type(values[name]) is tuple, key, _wrong_type("tuple", values[name]))
            for entry in values[name]:
                check_value(key, entry, typing.get_args(kind)[0], field.metadata)
        else:
            check_value(key, values[name], kind, field.metadata)


def check_names(values: Any, key: str) -> None:
    """Refuses what is not a mapping from names to groups."""
    _require(hasattr(values, "items"), key, f"expected a group of settings, got {values!r}")
    for label in values:
        _require(isinstance(label, str), key, f"expected names, got {label!r}")


def _wrong_type(expected: str, value: object) -> str:
    return f"expected {expected}, got {type(value).__name__} {value!r}"


def check_value(key: str, value: Any, kind: Any, metadata: Mapping[str, Any]) -> None:
    """Compares one value, or one entry of a tuple, with its type, allowed values and range.

    Raises:
      ConfigError: naming the key.
    """
    if typing.get_origin(kind) is typing.Literal:
        allowed = typing.get_args(kind)
        _require(
            type(value) is type(allowed[0]), key, _wrong_type(type(allowed[0]).__name__, value)
        )
        if value in allowed:
            return
        if not isinstance(value, str):
            raise ConfigError(f"{key}: is {' or '.join(map(str, allowed))}, got {value}")
        near = nearest(value, allowed)
        raise ConfigError(f"{key}: '{value}' is not one of {', '.join(allowed)}{near}")
    right = type(value) is kind or (kind is float and type(value) is int)
    _require(right, key, _wrong_type(kind.__name__, value))
    if kind in (int, float):
        _require(math.isfinite(value), key, f"must be a finite number, got {value}")
        _check_range(key, value, metadata)


def interval(limits: Mapping[str, float]) -> str:
    """A range with two ends, such as (0, 1]."""
    low = f"[{limits['minimum']}" if "minimum" in limits else f"({limits['above']}"
    return f"{low}, " + (f"{limits['maximum']}]" if "maximum" in limits else f"{limits['below']})")


def _check_range(key: str, value: float, metadata: Mapping[str, Any]) -> None:
    limits = metadata["limits"]
    low, high = limits.get("minimum", -math.inf), limits.get("maximum", math.inf)
    above, below = limits.get("above", -math.inf), limits.get("below", math.inf)
    if low <= value <= high and above < value < below:
        return
    if "maximum" in limits or "below" in limits:
        near = min(max(value, low), high)
        hint = f"; did you mean {type(value)(near)}?" if above < near < below else ""
        raise ConfigError(f"{key}: lies in {interval(limits)}, got {value}{hint}")
    if above == 0:
        raise ConfigError(f"{key}: must be positive, got {value}")
    if low != 0:
        raise ConfigError(f"{key}: must be at least {low}, got {value}")
    zero = re.search(r"(?:^|; )0: ([^;]+)", metadata["meaning"])
    raise ConfigError(
        f"{key}: cannot be negative, got {value}" + (f"; 0: {zero[1]}" if zero else "")
    )


def check_contradictions(config: Config) -> None:
    """Refuses values that are right by themselves and cannot work together.

    Raises:
      ConfigError: naming the keys.
    """
    _check_curriculum(config)
    _check_model(config)
    if config.model.patch_embed == "encoder":
        _check_encoder(config)
    for name in config.curriculum:
        _check_stage(config, name)


def _check_curriculum(config: Config) -> None:
    names = config.curriculum
    _require(names, "curriculum", "names no stage")
    _require(len(set(names)) == len(names), "curriculum", "names a stage twice")
    for name in names:
        if name not in config.stages:
            near = nearest(name, config.stages)
            raise ConfigError(f"curriculum: no stage named '{name}' in stages{near}")


def _check_model(config: Config) -> None:
    model, mesh = config.model, config.mesh
    _require(
        model.num_heads % model.num_kv_heads == 0,
        "model.num_kv_heads",
        f"{model.num_kv_heads} does not divide num_heads = {model.num_heads}",
    )
    _require(
        model.head_dim % 2 == 0, "model.head_dim", f"RoPE needs an even width, got {model.head_dim}"
    )
    _require(
        model.patch_width % model.patch_heads == 0,
        "model.patch_heads",
        f"{model.patch_heads} does not divide patch_width = {model.patch_width}",
    )
    layers = model.merge_layers
    for key in ("merge_policies", "merge_thresholds", "merge_ratios"):
        count = len(getattr(model, key))
        _require(
            count == len(layers),
            f"model.{key}",
            f"needs one entry for each of merge_layers = {layers}, has {count}",
        )
    _require(
        list(layers) == sorted(set(layers)), "model.merge_layers", f"must increase, got {layers}"
    )
    for layer in layers:
        _require(
            layer < model.num_layers,
            "model.merge_layers",
            f"{layer} is not a layer of 0 … {model.num_layers - 1}",
        )
    _require(
        mesh.context == 1 or model.attention != "cudnn",
        "mesh.context",
        f"{mesh.context} splits sequences, which model.attention = cudnn cannot; use xla or auto,"
        " or mesh.context = 1",
    )


def _check_encoder(config: Config) -> None:
    """The encoder-based baseline, whose tower is the one that the group `teacher` describes."""
    model, teacher = config.model, config.teacher
    _require(
        teacher.kind == "siglip",
        "teacher.kind",
        f"model.patch_embed = encoder sees through a siglip, got {teacher.kind}",
    )
    _require(
        model.patch_size == teacher.patch_size,
        "model.patch_size",
        f"with patch_embed = encoder it must be teacher.patch_size = {teacher.patch_size},"
        f" got {model.patch_size}",
    )
    _require(
        teacher.grid >= 1,
        "teacher.patch_size",
        f"lies in 1 … image_size = {teacher.image_size}, got {teacher.patch_size}",
    )
    stages = [name for name in config.curriculum if config.stages[name].kind == "elva"]
    for name in stages:
        stage, at = config.stages[name], f"stages.{name}."
        _require(
            stage.data.max_patches % teacher.grid**2 == 0,
            at + "data.max_patches",
            f"{stage.data.max_patches} is no multiple of the {teacher.grid**2} patches of a frame"
            " of model.patch_embed = encoder",
        )
        for term in ("tube", "contrastive"):
            _require(
                getattr(stage.loss, term) == 0,
                f"{at}loss.{term}",
                "must be 0: with model.patch_embed = encoder there is no <FRAME>, and the teacher"
                " is in the model",
            )
    _require(
        not stages or config.init_from or _has_teacher(config, stages[0]),
        "model.patch_embed",
        "encoder takes its vision tower from a teacher: put a stage of kind teacher first, or set"
        " teacher.init_from",
    )


def _has_teacher(config: Config, name: str) -> bool:
    """Whether the weights of a vision tower exist before a stage."""
    before = config.curriculum[: config.curriculum.index(name)]
    return bool(config.teacher.init_from) or any(
        config.stages[other].kind == "teacher" for other in before
    )


def _check_stage(config: Config, name: str) -> None:
    stage, at = config.stages[name], f"stages.{name}."
    _require(
        stage.steps > 0 or stage.epochs > 0, at + "steps", "set steps, or epochs where steps is 0"
    )
    accumulate = stage.optimizer.accumulate
    _require(
        stage.batch_size % accumulate == 0,
        at + "optimizer.accumulate",
        f"{accumulate} does not divide batch_size = {stage.batch_size}",
    )
    _check_lora(stage, at)
    _require(stage.data.mixture, at + "data.mixture", "names no data")
    for label, source in stage.data.mixture.items():
        _check_source(source, f"{at}data.mixture.{label}.")
        _check_share(source, stage.data.temperature, f"{at}data.mixture.{label}.")
    if stage.data.num_low_frames:
        _check_hybrid(stage, config.model.patch_size, at)
    if stage.kind == "teacher":
        _check_teacher(config, name)
    else:
        _check_sequence(config, stage.data, at)
        _check_merging(config, stage, at)
        _check_guidance(config, name, at)


def _check_teacher(config: Config, name: str) -> None:
    _require(
        config.teacher.kind == "siglip",
        "teacher.kind",
        f"stage {name} trains a SigLIP; an EVA-CLIP comes from teacher.init_from",
    )
    _require(
        config.teacher.text_layers > 0,
        "teacher.text_layers",
        f"stage {name} trains the teacher on captions, which needs a text tower",
    )


def _check_lora(stage: StageConfig, at: str) -> None:
    lora, at = stage.optimizer.lora, f"{at}optimizer.lora."
    if not lora.rank:
        return
    _require(
        stage.kind == "elva",
        at + "rank",
        "adapts the decoder, and a stage of kind teacher has none; set it to 0",
    )
    _require(lora.targets, at + "targets", "names no projection")
    for target in lora.targets:
        try:
            found = any(re.search(target, name) for name in PROJECTIONS)
        except re.error as error:
            raise ConfigError(
                f"{at}targets: '{target}' is not a regular expression: {error}"
            ) from None
        if not found:
            near = nearest(target, PROJECTIONS)
            raise ConfigError(
                f"{at}targets: '{target}' finds none of {', '.join(PROJECTIONS)}{near}"
            )


def _check_source(source: SourceConfig, at: str) -> None:
    """Keys that only a TFDS data set, a file or a Hugging Face folder has."""
    name = source.name
    is_folder, is_file = name.startswith("hf:"), name.lower().endswith(FILES)
    if is_folder or is_file:
        what = "" if is_folder else "a file, "
        _require(
            is_folder or not source.split,
            at + "split",
            f"'{source.split}' is a split of a TFDS data set; {name} is a file: leave it empty",
        )
        _require(
            not source.root or not name.lower().endswith(".tar"),
            at + "root",
            "a .tar has its media within: leave it empty",
        )
        _require(
            not source.tasks,
            at + "tasks",
            f"chooses turns of a built data set; {name} is {what}read whole: leave it empty",
        )
        return
    _require(
        source.split,
        at + "split",
        f"names no split of {name}; files end in {', '.join(FILES)}, folders begin with hf:",
    )
    _require(
        not source.root,
        at + "root",
        f"is for files ({', '.join(FILES[:-1])}); {name} is a TFDS data set: leave it empty",
    )


def _check_share(source: SourceConfig, temperature: float, at: str) -> None:
    """How many of a source's records are used, and how often."""
    try:
        parse_sampling(source.sampling)
    except ValueError as error:
        raise ConfigError(f"{at}sampling: {error}") from None
    _require(
        source.epochs == 1 or temperature > 0,
        at + "epochs",
        f"{source.epochs} changes nothing while the weights alone make the shares; set"
        " data.temperature = 1.0 to draw by size, or weight",
    )


def _check_hybrid(stage: StageConfig, patch_size: int, at: str) -> None:
    data, at = stage.data, at + "data."
    _require(
        stage.kind == "elva",
        at + "num_low_frames",
        "a teacher sees frames of one size; set it to 0",
    )
    half = max(data.longest_edge // 2 // patch_size, 1) * patch_size
    _require(
        patch_size <= data.low_longest_edge <= data.longest_edge,
        at + "low_longest_edge",
        f"{data.low_longest_edge} px must lie between one patch of {patch_size} px and"
        f" longest_edge = {data.longest_edge}; half is {half}",
    )
    frames = data.num_frames + data.num_low_frames
    _require(
        frames <= data.max_frames,
        at + "num_low_frames",
        f"{data.num_frames} + {data.num_low_frames} frames of a video exceed max_frames ="
        f" {data.max_frames}; set that to {frames} or more",
    )


def _check_sequence(config: Config, data: DataConfig, at: str) -> None:
    model, at = config.model, at + "data."
    _require(
        data.seq_len <= model.max_position,
        at + "seq_len",
        f"{data.seq_len} exceeds model.max_position = {model.max_position}",
    )
    _require(
        data.max_patches <= data.seq_len,
        at + "max_patches",
        f"{data.max_patches} exceeds seq_len = {data.seq_len}",
    )
    _require(
        data.longest_edge >= model.patch_size,
        at + "longest_edge",
        f"{data.longest_edge} px is less than one patch of {model.patch_size} px",
    )


def _check_merging(config: Config, stage: StageConfig, at: str) -> None:
    layers, buckets, length = config.model.merge_layers, stage.merge_buckets, stage.data.seq_len
    _require(
        layers or not stage.merging, at + "merging", "is on, but model.merge_layers names no layer"
    )
    _require(
        len(buckets) in (0, len(layers)),
        at + "merge_buckets",
        f"needs one entry for each of model.merge_layers = {layers}",
    )
    _require(not buckets or stage.merging, at + "merge_buckets", "is set, but merging is off")
    sizes = [length, *filter(None, buckets)]
    _require(
        sizes == sorted(sizes, reverse=True),
        at + "merge_buckets",
        f"must not grow from layer to layer or past seq_len = {length}, got {buckets}",
    )


def _check_guidance(config: Config, name: str, at: str) -> None:
    loss = config.stages[name].loss
    _require(
        loss.generation + loss.tube + loss.contrastive > 0, at + "loss", "every term has weight 0"
    )
    if loss.tube == 0 and loss.contrastive == 0:
        return
    term = "tube" if loss.tube else "contrastive"
    _require(
        not config.stages[name].merging,
        f"{at}loss.{term}",
        "guidance needs every patch; it cannot be combined with merging (stage 3 uses the"
        " generation loss alone)",
    )
    _require(
        _has_teacher(config, name),
        f"{at}loss.{term}",
        "needs a teacher: put a stage of kind teacher before it, or set teacher.init_from",
    )
