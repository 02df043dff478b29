"""The functions that a run is given beside its configuration, to read its data and weights.

    configuration -> make_task -> Task, which computes ------+
                     open_data -> StageData: batches, evaluation --> trainer
                     initial_weights, frozen_trees ----------+

The trainer imports neither models nor data. `tasks.elva_recipe` has the recipe of this package.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from elva_jax.config.schema import Config
from elva_jax.training.setup import TrainSetup
from elva_jax.training.stage_data import StageData
from elva_jax.training.task import Task

Say = Callable[[str], None]  # shows a line


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The parts of a run that depend on what it trains.

    Attributes:
      make_task: the task of a stage, by its name.
      load_tokenizer: loads the tokenizer of the run from a folder; raises DataError, or ConfigError
        where it does not fit the model.
      open_data: the data of a stage; raises DataError.
      initial_weights: (setup, workdir, say) -> those parameters of a stage, by '/'-joined path,
        that do not start at random; raises CheckpointError.
      frozen_trees: (setup, workdir) -> the trees that the loss of a stage reads and nothing
        changes; raises CheckpointError.
      describe: a few words about how the run computes, for its first line.
    """

    make_task: Callable[[Config, str], Task]
    load_tokenizer: Callable[[Config, Path], PreTrainedTokenizerBase]
    open_data: Callable[[Task, PreTrainedTokenizerBase], StageData]
    initial_weights: Callable[[TrainSetup, Path, Say], Mapping[str, jax.Array]]
    frozen_trees: Callable[[TrainSetup, Path], Mapping[str, Any]]
    describe: Callable[[Config, Mesh], str]
