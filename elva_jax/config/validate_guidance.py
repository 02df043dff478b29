"""Refuses teachers that cannot guide a stage; see `config.validate`."""

from __future__ import annotations

import re

from elva_jax.config.check import require
from elva_jax.config.schema import Config, TeacherConfig
from elva_jax.config.stages import stages_of_kind
from elva_jax.config.teachers import same_tower, teachers_of

SEES_CLIPS = ("vivit", "languagebind", "hiera")  # kinds of towers; others see one image at a time


def check_guidance(config: Config, name: str) -> None:
    """Refuses a stage whose guidance losses have no teacher, or one that cannot be theirs.

    Raises:
      ConfigError: naming the key.
    """
    stage, at = config.stages[name], f"stages.{name}."
    loss = stage.loss
    require(
        loss.generation + loss.tube + loss.contrastive > 0, at + "loss", "every term has weight 0"
    )
    if loss.tube == 0 and loss.contrastive == 0:
        return
    term = "tube" if loss.tube else "contrastive"
    require(
        not stage.merging,
        f"{at}loss.{term}",
        "guidance needs every patch; it cannot be combined with merging (stage 3 uses the"
        " generation loss alone)",
    )
    for label in config.teachers:
        require(
            re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", label),
            f"teachers.{label}",
            "the name must begin with a letter and consist of letters, digits and _",
        )
    group = "teachers" if config.teachers else "teacher"
    teachers = teachers_of(config)
    require(
        teachers,
        f"{group}.*.weight" if config.teachers else "teacher.weight",
        f"no teacher has a weight above 0, and {at}loss.{term} needs one; set it to 0 for no"
        " guidance",
    )
    for label, teacher in teachers.items():
        key = f"teachers.{label}" if config.teachers else "teacher"
        check_tower(teacher, key)
        _check_source(config, name, teacher, key, f"{at}loss.{term}")


def check_tower(tower: TeacherConfig, key: str) -> None:
    """Refuses sizes of a vision tower that do not divide; `key` is its group.

    Raises:
      ConfigError: naming the key.
    """
    require(
        tower.patch_size <= tower.image_size,
        f"{key}.patch_size",
        f"must be in 1 … image_size = {tower.image_size}, got {tower.patch_size}",
    )
    require(
        tower.num_frames == 1 or tower.kind in SEES_CLIPS,
        f"{key}.num_frames",
        f"a {tower.kind} sees one image at a time: set it to 1, got {tower.num_frames}",
    )
    require(
        tower.num_frames % tower.tubelet == 0,
        f"{key}.tubelet",
        f"{tower.tubelet} does not divide num_frames = {tower.num_frames}",
    )


def has_teacher(config: Config, name: str) -> bool:
    """Whether the weights of the group `teacher` exist before a stage."""
    return bool(config.teacher.init_from) or bool(stages_before(config, name))


def stages_before(config: Config, name: str) -> tuple[str, ...]:
    """The stages before one that train the group `teacher`."""
    before = config.curriculum[: config.curriculum.index(name)]
    return stages_of_kind(config, "teacher", among=before)


def _check_source(config: Config, name: str, teacher: TeacherConfig, key: str, term: str) -> None:
    """Whether the weights of a teacher exist before a stage."""
    if teacher.init_from:
        return
    require(
        stages_before(config, name),
        term,
        f"needs a teacher: put a stage of kind teacher before it, or set {key}.init_from",
    )
    require(
        same_tower(teacher, config.teacher),
        f"{key}.init_from",
        "is empty, so its weights would be those that this run's stage of kind teacher trains, and"
        " the group teacher describes another tower; set it",
    )
