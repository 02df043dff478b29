"""The teachers of a run: the group `teacher` alone, or the entries of `teachers`."""

from __future__ import annotations

import dataclasses

from elva_jax.config.schema import Config, TeacherConfig

ALONE = "teacher"  # the name of the only teacher, where the group `teachers` is empty


def teachers_of(config: Config) -> dict[str, TeacherConfig]:
    """The teachers that guide, by name and sorted by it; those of weight 0 are left out."""
    every = config.teachers or {ALONE: config.teacher}
    return {name: every[name] for name in sorted(every) if every[name].weight}


def with_teacher(config: Config, teacher: TeacherConfig) -> Config:
    """The configuration of a run that has this teacher alone, as its weights are read."""
    return dataclasses.replace(config, teacher=teacher, teachers={})


def same_tower(one: TeacherConfig, other: TeacherConfig) -> bool:
    """Whether two descriptions have the same weights: they differ in how a tower is used only."""
    return _weights(one) == _weights(other)


def _weights(teacher: TeacherConfig) -> TeacherConfig:
    return dataclasses.replace(
        teacher,
        init_from="",
        weight=1.0,
        features="penultimate",
        dtype="float32",
        text_layers=0,
        text_length=1,
    )
