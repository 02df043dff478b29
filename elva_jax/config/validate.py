"""Refusing a config before anything starts: unknown keys, wrong types, values and combinations that cannot work."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from ml_collections import ConfigDict

from elva_jax.config import schema
from elva_jax.config.mixtures import parse_sampling
from elva_jax.errors import ConfigError

CHOICES = {
    "model.patch_embed": ("video", "naive", "encoder"),
    "model.dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "full", "dots", "dots_no_batch", "names"),
    "model.attention": ("auto", "xla", "cudnn"),
    "model.rope_scaling": ("default", "linear", "dynamic", "yarn"),
    "teacher.kind": ("siglip", "eva_clip", "eva02_clip"),
    "checkpoint.on_error": ("stop", "continue"),
    "teacher.dtype": ("float32", "bfloat16"),
    "kind": ("elva", "teacher"),
    "data.hybrid_policy": ("interleave", "ends", "scene"),
    "loss.tube_reduction": ("sum", "mean"),
    "loss.tube_temporal": ("mean", "none"),
    "optimizer.name": ("adamw", "muon"),
    "optimizer.frozen_dtype": ("float32", "bfloat16"),
}
PROJECTIONS = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)  # of a decoder layer
POLICIES = ("threshold", "ratio", "both", "pool")
FILES = (
    ".json",
    ".jsonl",
    ".csv",
    ".tar",
)  # a source whose name ends so is a file, any other a TFDS data set
TASKS = ("object", "caption", "open", "choice")
POSITIVE_MODEL = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "max_position",
)
POSITIVE_DATA = ("num_frames", "longest_edge", "seq_len", "max_patches", "max_frames", "max_turns")


def validate(config: ConfigDict) -> None:
    """Checks a whole run configuration.

    Raises:
      ConfigError: naming the key, what is wrong and the nearest valid key or value.
    """
    _check_schema(config, schema.base(), "")
    for name, stage in config.stages.items():
        _check_schema(stage, schema.stage(), f"stages.{name}")
        for label, source in stage.data.mixture.items():
            _check_schema(source, schema.source("", ""), f"stages.{name}.data.mixture.{label}")
    _check_curriculum(config)
    _check_model(config.model)
    _check_mesh(config)
    _check_choice(config, "teacher.kind", "")
    _check_watching(config)
    _check_choice(config, "teacher.dtype", "")
    if config.model.patch_embed == "encoder":
        _check_encoder(config)
    for name in config.curriculum:
        _check_stage(config, name)


def _require(condition: bool, key: str, problem: str) -> None:
    if not condition:
        raise ConfigError(f"{key}: {problem}")


def nearest(wrong: str, allowed: Sequence[str]) -> str:
    """The end of a message about a wrong name: the most similar allowed one, or nothing where none is allowed."""
    near = difflib.get_close_matches(str(wrong), list(allowed), 1, 0)
    return f"; did you mean {near[0]}?" if near else ""


def _check_schema(config: ConfigDict, schema: ConfigDict, where: str) -> None:
    """Same keys and types as the schema; `stages` and `mixture` hold names of the user's own."""
    prefix = f"{where}." if where else ""
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"{where}: expected a group of settings, got {config!r}")
    for key in config:
        _require(key in schema, prefix + key, f"no such key{nearest(key, list(schema))}")
    for key, default in schema.items():
        _require(
            key in config, prefix + key, "missing; start the config from elva_jax.config.schema"
        )
        value = config[key]
        if isinstance(default, ConfigDict):
            if key not in ("stages", "mixture"):
                _check_schema(value, default, prefix + key)
            continue
        fits = type(value) is type(default) or (isinstance(default, float) and type(value) is int)
        _require(
            fits,
            prefix + key,
            f"expected {type(default).__name__}, got {type(value).__name__} {value!r}",
        )


def _check_choice(config: ConfigDict, key: str, prefix: str) -> None:
    value = config
    for part in key.split("."):
        value = value[part]
    _require(
        value in CHOICES[key],
        prefix + key,
        f"'{value}' is not one of {', '.join(CHOICES[key])}{nearest(value, CHOICES[key])}",
    )


def _check_curriculum(config: ConfigDict) -> None:
    _require(len(config.curriculum) > 0, "curriculum", "names no stage")
    _require(
        len(set(config.curriculum)) == len(config.curriculum), "curriculum", "names a stage twice"
    )
    for name in config.curriculum:
        _require(
            name in config.stages,
            "curriculum",
            f"no stage named '{name}' in stages{nearest(name, list(config.stages))}",
        )


def _check_watching(config: ConfigDict) -> None:
    """Saves and reports."""
    _check_choice(config, "checkpoint.on_error", "")
    for key in ("checkpoint.every", "log.every", "log.max_bad_steps"):
        group, name = key.split(".")
        _require(config[group][name] >= 1, key, f"must be at least 1, got {config[group][name]}")
    for key in ("checkpoint.keep", "checkpoint.minutes", "log.peak_tflops"):
        group, name = key.split(".")
        _require(config[group][name] >= 0, key, f"cannot be negative, got {config[group][name]}")


def _check_model(model: ConfigDict) -> None:
    for key in POSITIVE_MODEL:
        _require(model[key] >= 1, f"model.{key}", f"must be at least 1, got {model[key]}")
    for key in ("patch_embed", "dtype", "remat", "attention", "rope_scaling"):
        _check_choice(ConfigDict({"model": model}), f"model.{key}", "")
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
        _require(
            len(model[key]) == len(layers),
            f"model.{key}",
            f"needs one entry for each of merge_layers = {layers}, has {len(model[key])}",
        )
    _require(
        list(layers) == sorted(set(layers)), "model.merge_layers", f"must increase, got {layers}"
    )
    for layer in layers:
        _require(
            0 <= layer < model.num_layers,
            "model.merge_layers",
            f"{layer} is not a layer of 0 … {model.num_layers - 1}",
        )
    for policy in model.merge_policies:
        _require(
            policy in POLICIES,
            "model.merge_policies",
            f"'{policy}' is not one of {', '.join(POLICIES)}{nearest(policy, POLICIES)}",
        )
    for threshold in model.merge_thresholds:
        _require(
            -1 <= threshold <= 1,
            "model.merge_thresholds",
            f"a cosine lies in [-1, 1], got {threshold}",
        )
    for ratio in model.merge_ratios:
        _require(0 < ratio <= 1, "model.merge_ratios", f"a share lies in (0, 1], got {ratio}")


def _check_mesh(config: ConfigDict) -> None:
    mesh = config.mesh
    _require(mesh.zero in (2, 3), "mesh.zero", f"is 2 or 3, got {mesh.zero}")
    _require(
        mesh.context == 1 or config.model.attention != "cudnn",
        "mesh.context",
        f"{mesh.context} splits sequences, which model.attention = cudnn cannot; use xla or auto, or mesh.context = 1",
    )


def _check_encoder(config: ConfigDict) -> None:
    """The encoder-based baseline: its tower is the one that the group `teacher` describes."""
    model, teacher = config.model, config.teacher
    _require(
        teacher.kind == "siglip",
        "teacher.kind",
        f"model.patch_embed = encoder sees through a siglip, got {teacher.kind}",
    )
    _require(
        model.patch_size == teacher.patch_size,
        "model.patch_size",
        f"with patch_embed = encoder it must be teacher.patch_size = {teacher.patch_size}, got {model.patch_size}",
    )
    size = teacher.image_size
    _require(
        1 <= teacher.patch_size <= size,
        "teacher.patch_size",
        f"lies in 1 … image_size = {size}, got {teacher.patch_size}",
    )
    grid = size // teacher.patch_size
    elva = [name for name in config.curriculum if config.stages[name].kind == "elva"]
    for name in elva:
        stage, at = config.stages[name], f"stages.{name}."
        _require(
            stage.data.max_patches % grid**2 == 0,
            at + "data.max_patches",
            f"{stage.data.max_patches} is no multiple of the {grid**2} patches of a frame of model.patch_embed = encoder",
        )
        for term in ("tube", "contrastive"):
            _require(
                stage.loss[term] == 0,
                f"{at}loss.{term}",
                "must be 0: with model.patch_embed = encoder there is no <FRAME>, and the teacher is in the model",
            )
    _require(
        not elva or bool(config.init_from) or _has_teacher(config, elva[0]),
        "model.patch_embed",
        "encoder takes its vision tower from a teacher: put a stage of kind teacher first, or set teacher.init_from",
    )


def _has_teacher(config: ConfigDict, name: str) -> bool:
    """Whether a stage finds the weights of a vision tower."""
    before = config.curriculum[: config.curriculum.index(name)]
    return bool(config.teacher.init_from) or any(
        config.stages[other].kind == "teacher" for other in before
    )


def _check_stage(config: ConfigDict, name: str) -> None:
    stage, at = config.stages[name], f"stages.{name}."
    for key in (
        "kind",
        "data.hybrid_policy",
        "loss.tube_reduction",
        "loss.tube_temporal",
        "optimizer.name",
        "optimizer.frozen_dtype",
    ):
        _check_choice(stage, key, at)
    _require(
        stage.steps >= 0 and stage.epochs >= 0, at + "steps", "steps and epochs cannot be negative"
    )
    _require(
        stage.steps > 0 or stage.epochs > 0, at + "steps", "set steps, or epochs where steps is 0"
    )
    _require(
        stage.batch_size >= 1, at + "batch_size", f"must be at least 1, got {stage.batch_size}"
    )
    optimizer = stage.optimizer
    _require(
        optimizer.accumulate >= 1,
        at + "optimizer.accumulate",
        f"must be at least 1, got {optimizer.accumulate}",
    )
    _require(
        stage.batch_size % optimizer.accumulate == 0,
        at + "optimizer.accumulate",
        f"{optimizer.accumulate} does not divide batch_size = {stage.batch_size}",
    )
    _check_lora(stage, at)
    _require(
        0 <= optimizer.warmup_ratio <= 1,
        at + "optimizer.warmup_ratio",
        f"lies in [0, 1], got {optimizer.warmup_ratio}",
    )
    data = stage.data
    _require(len(data.mixture) > 0, at + "data.mixture", "names no data")
    for label, source in data.mixture.items():
        key = f"{at}data.mixture.{label}."
        _require(source.weight > 0, key + "weight", f"must be positive, got {source.weight}")
        for task in source.tasks:
            _require(
                task in TASKS,
                key + "tasks",
                f"'{task}' is not one of {', '.join(TASKS)}{nearest(task, TASKS)}",
            )
        _check_source(source, key)
        _check_share(source, data.temperature, key)
    _require(
        data.temperature >= 0,
        at + "data.temperature",
        f"cannot be negative, got {data.temperature}; 0: the weights alone",
    )
    for key in POSITIVE_DATA:
        _require(data[key] >= 1, f"{at}data.{key}", f"must be at least 1, got {data[key]}")
    _require(
        0 <= data.max_bad_fraction <= 1,
        at + "data.max_bad_fraction",
        f"lies in [0, 1], got {data.max_bad_fraction}",
    )
    _require(
        data.time_limit >= 0,
        at + "data.time_limit",
        f"cannot be negative, got {data.time_limit}; 0 is no limit",
    )
    _check_hybrid(stage, config.model.patch_size, at + "data.")
    if stage.kind == "teacher":
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
    else:
        _check_sequence(config, stage, at)
        _check_guidance(config, name, at)


def _check_lora(stage: ConfigDict, at: str) -> None:
    lora, at = stage.optimizer.lora, f"{at}optimizer.lora."
    _require(lora.rank >= 0, at + "rank", f"cannot be negative, got {lora.rank}; 0 is off")
    if not lora.rank:
        return
    _require(
        stage.kind == "elva",
        at + "rank",
        "adapts the decoder, which a teacher has not; set it to 0",
    )
    _require(lora.alpha > 0, at + "alpha", f"must be positive, got {lora.alpha}")
    _require(len(lora.targets) > 0, at + "targets", "names no projection")
    for target in lora.targets:
        try:
            found = any(re.search(target, name) for name in PROJECTIONS)
        except re.error as error:
            raise ConfigError(
                f"{at}targets: '{target}' is not a regular expression: {error}"
            ) from None
        _require(
            found,
            at + "targets",
            f"'{target}' finds none of {', '.join(PROJECTIONS)}{nearest(target, PROJECTIONS)}",
        )


def _check_source(source: ConfigDict, at: str) -> None:
    """What a TFDS data set needs and a file has not, and the other way round."""
    if source.name.startswith("hf:"):
        _require(
            not source.tasks,
            at + "tasks",
            f"chooses turns of a built data set; {source.name} is read whole: leave it empty",
        )
    elif source.name.lower().endswith(FILES):
        _require(
            not source.split,
            at + "split",
            f"'{source.split}' is a split of a TFDS data set; {source.name} is a file: leave it empty",
        )
        _require(
            not source.root or not source.name.lower().endswith(".tar"),
            at + "root",
            "a .tar has its media within: leave it empty",
        )
        _require(
            not source.tasks,
            at + "tasks",
            f"chooses turns of a built data set; {source.name} is a file, read whole: leave it empty",
        )
    else:
        _require(
            bool(source.split),
            at + "split",
            f"names no split of {source.name}; files end in {', '.join(FILES)}, and hf: stands before a folder",
        )
        _require(
            not source.root,
            at + "root",
            f"is for files ({', '.join(FILES[:-1])}); {source.name} is a TFDS data set: leave it empty",
        )


def _check_share(source: ConfigDict, temperature: float, at: str) -> None:
    """How many of a source's records are used, and how often."""
    try:
        parse_sampling(source.sampling)
    except ValueError as error:
        raise ConfigError(f"{at}sampling: {error}") from None
    _require(source.epochs > 0, at + "epochs", f"must be positive, got {source.epochs}")
    _require(
        source.epochs == 1 or temperature > 0,
        at + "epochs",
        f"{source.epochs} changes nothing while the weights alone make the shares; set data.temperature = 1.0 to draw by size, or weight",
    )


def _check_hybrid(stage: ConfigDict, patch_size: int, at: str) -> None:
    data, share = stage.data, stage.data.hybrid_probability
    _require(
        data.num_low_frames >= 0,
        at + "num_low_frames",
        f"cannot be negative, got {data.num_low_frames}; 0 is off",
    )
    _require(
        0 <= share <= 1,
        at + "hybrid_probability",
        f"lies in [0, 1], got {share}; did you mean {min(max(share, 0.0), 1.0)}?",
    )
    if not data.num_low_frames:
        return
    _require(
        stage.kind == "elva",
        at + "num_low_frames",
        "a teacher sees frames of one size; set it to 0",
    )
    half = max(data.longest_edge // 2 // patch_size, 1) * patch_size
    _require(
        patch_size <= data.low_longest_edge <= data.longest_edge,
        at + "low_longest_edge",
        f"{data.low_longest_edge} px must lie between one patch of {patch_size} px and longest_edge = {data.longest_edge}; half is {half}",
    )
    frames = data.num_frames + data.num_low_frames
    _require(
        frames <= data.max_frames,
        at + "num_low_frames",
        f"{data.num_frames} + {data.num_low_frames} frames of a video exceed max_frames = {data.max_frames}; set that to {frames} or more",
    )


def _check_sequence(config: ConfigDict, stage: ConfigDict, at: str) -> None:
    model, data = config.model, stage.data
    _require(
        data.seq_len <= model.max_position,
        at + "data.seq_len",
        f"{data.seq_len} exceeds model.max_position = {model.max_position}",
    )
    _require(
        data.max_patches <= data.seq_len,
        at + "data.max_patches",
        f"{data.max_patches} exceeds seq_len = {data.seq_len}",
    )
    _require(
        data.longest_edge >= model.patch_size,
        at + "data.longest_edge",
        f"{data.longest_edge} px is less than one patch of {model.patch_size} px",
    )
    _require(
        not stage.merging or len(model.merge_layers) > 0,
        at + "merging",
        "is on, but model.merge_layers names no layer",
    )
    buckets = stage.merge_buckets
    _require(
        len(buckets) in (0, len(model.merge_layers)),
        at + "merge_buckets",
        f"needs one entry for each of model.merge_layers = {model.merge_layers}",
    )
    _require(not buckets or stage.merging, at + "merge_buckets", "is set, but merging is off")
    sizes = [data.seq_len, *(bucket for bucket in buckets if bucket)]
    _require(
        sizes == sorted(sizes, reverse=True),
        at + "merge_buckets",
        f"must not grow from layer to layer or past seq_len = {data.seq_len}, got {buckets}",
    )


def _check_guidance(config: ConfigDict, name: str, at: str) -> None:
    loss = config.stages[name].loss
    for key in ("generation", "tube", "contrastive"):
        _require(loss[key] >= 0, f"{at}loss.{key}", f"a weight cannot be negative, got {loss[key]}")
    _require(
        loss.generation + loss.tube + loss.contrastive > 0, at + "loss", "every term has weight 0"
    )
    if loss.tube == 0 and loss.contrastive == 0:
        return
    term = "tube" if loss.tube else "contrastive"
    _require(
        not config.stages[name].merging,
        f"{at}loss.{term}",
        "guidance needs every patch; it cannot be combined with merging (stage 3 uses the generation loss alone)",
    )
    _require(
        _has_teacher(config, name),
        f"{at}loss.{term}",
        "needs a teacher: put a stage of kind teacher before it, or set teacher.init_from",
    )
