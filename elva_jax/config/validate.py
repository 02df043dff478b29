"""Refuses values that are right by themselves and cannot work together, with both keys named."""

from __future__ import annotations

from elva_jax.config.check import nearest, require
from elva_jax.config.mixtures import parse_sampling
from elva_jax.config.schema import Config, DataConfig, ModelConfig, SourceConfig, StageConfig
from elva_jax.config.stages import stages_of_kind
from elva_jax.config.validate_guidance import check_guidance, has_teacher
from elva_jax.config.validate_merv import check_merv
from elva_jax.config.validate_teacher import check_teacher
from elva_jax.errors import ConfigError
from elva_jax.utils import numbers
from elva_jax.utils.patterns import Matcher

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FILES = (".json", ".jsonl", ".csv", ".tar")  # endings of sources that are files; others are TFDS


def check_contradictions(config: Config) -> None:
    """Refuses values that are right by themselves and cannot work together.

    Raises:
      ConfigError: naming the keys.
    """
    _check_curriculum(config)
    check_model(config)
    if config.model.patch_embed == "encoder":
        _check_encoder(config)
    check_merv(config)
    for name in config.curriculum:
        _check_stage(config, name)


def _check_curriculum(config: Config) -> None:
    names = config.curriculum
    require(names, "curriculum", "names no stage")
    require(len(set(names)) == len(names), "curriculum", "names a stage twice")
    for name in names:
        if name not in config.stages:
            near = nearest(name, config.stages)
            raise ConfigError(f"curriculum: no stage named '{numbers.shown(name)}' in stages{near}")


def check_model(config: Config) -> None:
    """Refuses widths and heads that do not divide, and merging layers that do not match.

    Raises:
      ConfigError: naming the key.
    """
    model, mesh = config.model, config.mesh
    require(
        model.num_heads % model.num_kv_heads == 0,
        "model.num_kv_heads",
        f"{model.num_kv_heads} does not divide num_heads = {model.num_heads}",
    )
    require(
        model.head_dim % 2 == 0, "model.head_dim", f"RoPE needs an even width, got {model.head_dim}"
    )
    _check_rope(model)
    require(
        model.patch_width % model.patch_heads == 0,
        "model.patch_heads",
        f"{model.patch_heads} does not divide patch_width = {model.patch_width}",
    )
    for axis in ("data", "fsdp", "context", "tensor"):
        require(
            getattr(mesh, axis) != 0,
            f"mesh.{axis}",
            "must be at least 1, or -1 for all remaining devices, got 0",
        )
    layers = model.merge_layers
    for key in ("merge_policies", "merge_thresholds", "merge_ratios"):
        count = len(getattr(model, key))
        require(
            count == len(layers),
            f"model.{key}",
            f"needs one entry for each of merge_layers = {layers}, has {count}",
        )
    require(
        list(layers) == sorted(set(layers)), "model.merge_layers", f"must increase, got {layers}"
    )
    for layer in layers:
        require(
            layer < model.num_layers,
            "model.merge_layers",
            f"{layer} is not a layer of 0 … {model.num_layers - 1}",
        )
    require(
        mesh.context == 1 or model.attention != "cudnn",
        "mesh.context",
        f"{mesh.context} splits sequences, which model.attention = cudnn cannot; use xla or auto,"
        " or mesh.context = 1",
    )
    require(
        model.frame_attention == "causal" or (model.attention == "xla" and mesh.context == 1),
        "model.frame_attention",
        "bidirectional needs model.attention = xla and mesh.context = 1: cuDNN's kernel is causal,"
        f" and split sequences are; got {model.attention} and {mesh.context}",
    )


def _check_rope(model: ModelConfig) -> None:
    """Refuses a ramp of llama3 that falls."""
    low, high = model.rope_low_freq_factor, model.rope_high_freq_factor
    require(
        model.rope_scaling != "llama3" or low < high,
        "model.rope_high_freq_factor",
        f"{high} must be above model.rope_low_freq_factor = {low}",
    )


def _check_encoder(config: Config) -> None:
    """The encoder-based baseline, whose tower is the one that the group `teacher` describes."""
    model, teacher = config.model, config.teacher
    require(
        teacher.kind == "siglip",
        "teacher.kind",
        f"model.patch_embed = encoder needs a siglip tower, got {teacher.kind}",
    )
    require(
        model.patch_size == teacher.patch_size,
        "model.patch_size",
        f"with patch_embed = encoder it must be teacher.patch_size = {teacher.patch_size},"
        f" got {model.patch_size}",
    )
    require(
        teacher.grid >= 1,
        "teacher.patch_size",
        f"must be in 1 … image_size = {teacher.image_size}, got {teacher.patch_size}",
    )
    stages = stages_of_kind(config, "elva")
    for name in stages:
        stage, at = config.stages[name], f"stages.{name}."
        require(
            stage.data.max_patches % teacher.grid**2 == 0,
            at + "data.max_patches",
            f"{stage.data.max_patches} is not a multiple of the {teacher.grid**2} patches per frame"
            " of model.patch_embed = encoder",
        )
        for term in ("tube", "contrastive"):
            require(
                getattr(stage.loss, term) == 0,
                f"{at}loss.{term}",
                "must be 0: with model.patch_embed = encoder there is no <FRAME>, and the teacher"
                " is in the model",
            )
    require(
        not stages or config.init_from or has_teacher(config, stages[0]),
        "model.patch_embed",
        "encoder takes its vision tower from a teacher: put a stage of kind teacher first, or set"
        " teacher.init_from",
    )


def _check_stage(config: Config, name: str) -> None:
    stage, at = config.stages[name], f"stages.{name}."
    require(
        stage.steps > 0 or stage.epochs > 0, at + "steps", "set steps, or epochs where steps is 0"
    )
    for key, patterns in (
        ("freeze", stage.optimizer.freeze),
        ("lora.targets", stage.optimizer.lora.targets),
        ("lora.also", stage.optimizer.lora.also),
    ):
        for pattern in patterns:
            Matcher(f"{at}optimizer.{key}", ConfigError).check(pattern)
    accumulate = stage.optimizer.accumulate
    require(
        stage.batch_size % accumulate == 0,
        at + "optimizer.accumulate",
        f"{accumulate} does not divide batch_size = {stage.batch_size}",
    )
    require(stage.data.mixture, at + "data.mixture", "names no data")
    for label, source in stage.data.mixture.items():
        _check_source(source, f"{at}data.mixture.{label}.")
        _check_share(source, stage.data.temperature, f"{at}data.mixture.{label}.")
    if stage.eval.every:
        _check_held_out(stage, f"{at}eval.")
    CHECKS[stage.kind](config, name)


def _check_elva(config: Config, name: str) -> None:
    stage, at = config.stages[name], f"stages.{name}."
    _check_lora(stage, at)
    if stage.data.num_low_frames:
        _check_hybrid(stage, config.model.patch_size, at)
    _check_sequence(config, stage.data, at)
    _check_merging(config, stage, at)
    check_guidance(config, name)
    if stage.eval.every:
        _check_answers(config, stage, f"{at}eval.")


# What the evaluators of `eval.evaluators` measure, before any slash.
MEASURED = {
    "loss": ("loss",),
    "accuracy": ("exact", "choice"),
    "retrieval": ("retrieval",),
    "merging": ("merging",),
}


def _check_held_out(stage: StageConfig, at: str) -> None:
    """Refuses a number to keep that nothing measures, and held-out data that is none."""
    settings = stage.eval
    require(settings.evaluators, at + "evaluators", "names none; set every = 0 for no evaluation")
    if settings.keep_best:
        known = [name for evaluator in settings.evaluators for name in MEASURED[evaluator]]
        require(
            settings.keep_best.split("/")[0] in known,
            at + "keep_best",
            f"'{settings.keep_best}' is none of {', '.join(known)}, which eval.evaluators ="
            f" {settings.evaluators} measure",
        )
    for label, source in settings.mixture.items():
        _check_source(source, f"{at}mixture.{label}.")
        _check_share(source, 1.0, f"{at}mixture.{label}.")
    files = [source.name for source in stage.data.mixture.values() if not source.split]
    require(
        settings.mixture or not files,
        at + "mixture",
        f"names no held-out data, and {', '.join(files)} has no split: give a source of questions"
        " that the stage does not train on",
    )


# The checks of a kind of stage, as `tasks.registry.TASKS` has its training.
CHECKS = {"elva": _check_elva, "teacher": check_teacher}


def _check_answers(config: Config, stage: StageConfig, at: str) -> None:
    """Evaluators of answers that the stage cannot have."""
    evaluators = stage.eval.evaluators
    require(
        "retrieval" not in evaluators or stage.loss.contrastive,
        at + "evaluators",
        "retrieval measures the contrastive head, which the stage does not train: loss.contrastive"
        " is 0",
    )
    require(
        "merging" not in evaluators or config.model.merge_layers,
        at + "evaluators",
        "merging compares with and without it, but model.merge_layers names no layer",
    )


def _check_lora(stage: StageConfig, at: str) -> None:
    lora, at = stage.optimizer.lora, f"{at}optimizer.lora."
    if not lora.rank:
        return
    require(lora.targets, at + "targets", "names no projection")
    matcher = Matcher(at + "targets", ConfigError)
    for target in lora.targets:
        if not any(matcher.search(target, name) for name in PROJECTIONS):
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
        require(
            is_folder or not source.split,
            at + "split",
            f"'{source.split}' is a split of a TFDS data set; {name} is a file: leave it empty",
        )
        require(
            not source.root or not name.lower().endswith(".tar"),
            at + "root",
            "a .tar contains its media: leave it empty",
        )
        require(
            not source.tasks,
            at + "tasks",
            f"chooses turns of a built data set; {name} is {what}read whole: leave it empty",
        )
        return
    require(
        source.split,
        at + "split",
        f"does not name a split of {name}; files end in {', '.join(FILES)}, folders begin with hf:",
    )
    require(
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
    require(
        source.epochs == 1 or temperature > 0,
        at + "epochs",
        f"{source.epochs} changes nothing while the weights alone make the shares; set"
        " data.temperature = 1.0 to draw by size, or weight",
    )


def _check_hybrid(stage: StageConfig, patch_size: int, at: str) -> None:
    data, at = stage.data, at + "data."
    half = max(data.longest_edge // 2 // patch_size, 1) * patch_size
    require(
        patch_size <= data.low_longest_edge <= data.longest_edge,
        at + "low_longest_edge",
        f"{data.low_longest_edge} px must lie between one patch of {patch_size} px and"
        f" longest_edge = {data.longest_edge}; half is {half}",
    )
    frames = data.num_frames + data.num_low_frames
    require(
        frames <= data.max_frames,
        at + "num_low_frames",
        f"{data.num_frames} + {data.num_low_frames} frames of a video exceed max_frames ="
        f" {data.max_frames}; set that to {frames} or more",
    )


def _check_sequence(config: Config, data: DataConfig, at: str) -> None:
    model, at = config.model, at + "data."
    require(
        data.seq_len <= model.max_position,
        at + "seq_len",
        f"{data.seq_len} exceeds model.max_position = {model.max_position}",
    )
    require(
        data.max_patches <= data.seq_len,
        at + "max_patches",
        f"{data.max_patches} exceeds seq_len = {data.seq_len}",
    )
    require(
        data.longest_edge >= model.patch_size,
        at + "longest_edge",
        f"{data.longest_edge} px is less than one patch of {model.patch_size} px",
    )


def _check_merging(config: Config, stage: StageConfig, at: str) -> None:
    layers, buckets, length = config.model.merge_layers, stage.merge_buckets, stage.data.seq_len
    require(
        layers or not stage.merging, at + "merging", "is on, but model.merge_layers names no layer"
    )
    require(
        not (stage.merging and stage.data.captions),
        at + "data.captions",
        "learns a caption from the last visual token on, which merging may remove; set merging ="
        " False",
    )
    require(
        len(buckets) in (0, len(layers)),
        at + "merge_buckets",
        f"needs one entry for each of model.merge_layers = {layers}",
    )
    require(not buckets or stage.merging, at + "merge_buckets", "is set, but merging is off")
    sizes = [length, *filter(None, buckets)]
    require(
        sizes == sorted(sizes, reverse=True),
        at + "merge_buckets",
        f"must not grow from layer to layer or past seq_len = {length}, got {buckets}",
    )
