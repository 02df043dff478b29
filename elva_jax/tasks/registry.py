"""The one place that maps a stage's `kind` to its task."""

from __future__ import annotations

from ml_collections import ConfigDict

from elva_jax.config.schema import Config, StageConfig
from elva_jax.tasks.base import ModelTask
from elva_jax.tasks.siglip import SiglipTask
from elva_jax.tasks.video_llm import VideoLlmTask
from elva_jax.tasks.video_text import VideoTextTask

TASKS: dict[str, type[ModelTask]] = {"elva": VideoLlmTask, "teacher": SiglipTask}
# The tasks of kind teacher with another loss than the sigmoid one, by `contrast.loss`.
CONTRASTS: dict[str, type[ModelTask]] = {"infonce": VideoTextTask}


def task_of(stage: StageConfig) -> type[ModelTask]:
    """The class of a stage's task."""
    task = TASKS[stage.kind]
    return CONTRASTS.get(stage.contrast.loss, task) if task is SiglipTask else task


def make_task(config: ConfigDict | Config, stage_name: str) -> ModelTask:
    """The task of a stage of a run."""
    return task_of(config.stages[stage_name])(config, stage_name)
