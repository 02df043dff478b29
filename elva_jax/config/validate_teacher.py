"""Refuses what a stage of kind teacher cannot train; see `config.validate`."""

from __future__ import annotations

from elva_jax.config.check import require
from elva_jax.config.schema import Config, StageConfig

EVALUATORS = ("loss", "retrieval")  # those that measure clips and captions


def check_teacher(config: Config, name: str) -> None:
    """Refuses what a stage of kind teacher cannot train.

    Raises:
      ConfigError: naming the key.
    """
    stage, at = config.stages[name], f"stages.{name}."
    require(
        not stage.optimizer.lora.rank,
        at + "optimizer.lora.rank",
        "adapts the decoder, and a stage of kind teacher has none; set it to 0",
    )
    require(
        not stage.data.num_low_frames,
        at + "data.num_low_frames",
        "a teacher sees frames of one size; set it to 0",
    )
    if stage.eval.every:
        others = [name for name in stage.eval.evaluators if name not in EVALUATORS]
        require(
            not others,
            at + "eval.evaluators",
            f"{', '.join(others)} measures answers, which a stage of kind teacher does not train;"
            f" name one or both of {', '.join(EVALUATORS)}",
        )
    if stage.contrast.loss == "infonce":
        _check_infonce(config, stage, at)
        return
    require(
        config.teacher.kind == "siglip",
        "teacher.kind",
        f"stage {name} trains a SigLIP; an EVA-CLIP comes from teacher.init_from, and"
        f" {at}contrast.loss = infonce trains any tower",
    )
    require(
        config.teacher.text_layers > 0,
        "teacher.text_layers",
        f"stage {name} trains the teacher on captions, which needs a text tower",
    )
    tower = config.text_tower
    require(
        tower.kind == "siglip" and not (tower.init_from or tower.tokenizer or tower.vocab_size),
        "text_tower",
        f"describes a text tower of its own, which {at}contrast.loss = sigmoid does not train; set"
        " that to infonce",
    )


def _check_infonce(config: Config, stage: StageConfig, at: str) -> None:
    teacher, tower = config.teacher, config.text_tower
    require(
        stage.data.num_frames % teacher.num_frames == 0,
        at + "data.num_frames",
        f"{stage.data.num_frames} frames do not divide into clips of teacher.num_frames ="
        f" {teacher.num_frames}",
    )
    require(
        stage.batch_size > 1,
        at + "batch_size",
        "one clip has no other captions to tell its own from; set it to 2 or more",
    )
    if tower.kind == "siglip":
        require(
            teacher.kind == "siglip",
            "text_tower.kind",
            f"siglip is the text side of a SigLIP, and teacher.kind is {teacher.kind}; use bert",
        )
        require(
            teacher.text_layers > 0,
            "teacher.text_layers",
            "text_tower.kind = siglip needs the number of its layers",
        )
        return
    require(
        teacher.text_length <= tower.max_position,
        "teacher.text_length",
        f"{teacher.text_length} tokens exceed text_tower.max_position = {tower.max_position}",
    )
    require(
        tower.hidden_size % tower.num_heads == 0,
        "text_tower.num_heads",
        f"{tower.num_heads} does not divide hidden_size = {tower.hidden_size}",
    )
