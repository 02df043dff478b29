"""Opening a model for inference: a run, a converted checkpoint or an ELVA's Hugging Face folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from elva_jax.checkpoints.restore import Run, opening_run
from elva_jax.checkpoints.source import ParamSource
from elva_jax.config import schema
from elva_jax.config.schema import Config
from elva_jax.config.serialize import config_from_dict, freeze
from elva_jax.errors import ConvertError
from elva_jax.hf import elva
from elva_jax.hf.load import SavedFolder, describe, is_hf_source, load_store, make_targets
from elva_jax.hf.tensor_store import TensorStore, opening_store, read_json
from elva_jax.models.build import parameter_shapes
from elva_jax.utils.quiet import quiet_libraries
from elva_jax.utils.trees import unflatten_paths

Place = Callable[[Config], Mapping[str, Any]]
STAGE = "converted"  # the stage of a configuration made for weights that no run has trained


@contextlib.contextmanager
def opening_source(path: str | Path) -> Iterator[ParamSource]:
    """A run, a converted checkpoint or an ELVA's Hugging Face folder, to be read in the block.

    Checksums are compared meanwhile; the block ends when all are right.

    Raises:
      CheckpointError: nothing to load there, or it is damaged.
      ConvertError: a folder with another kind of model, or a damaged one.
    """
    if not is_hf_source(path):
        with quiet_libraries(), opening_run(path) as run:
            yield run
        return
    with quiet_libraries(), opening_store(path) as store:
        yield SavedFolder(store, *elva_config(store, path))


@quiet_libraries()
def open_run_or_folder(path: str | Path, place: Place = lambda config: {}) -> Run:
    """A run, a converted checkpoint or an ELVA's Hugging Face folder, in float32.

    Args:
      path: the run or folder.
      place: from its configuration to shardings by '/'-joined parameter path; parameters without
        one go to the first device.

    Raises:
      CheckpointError: nothing to load there.
      ConvertError: a folder with another kind of model, or a damaged one.
    """
    if is_hf_source(path):
        return load_folder(path, place)
    with opening_run(path) as run:
        return run.load_float32(place(run.config))


def load_folder(path: str | Path, place: Place = lambda config: {}) -> Run:
    """An ELVA's Hugging Face folder as a run; see `open_run_or_folder`.

    Raises:
      ConvertError: a folder with another kind of model, or a damaged one.
    """
    with opening_store(path) as store:
        config, stage, step = elva_config(store, path)
        targets = make_targets(parameter_shapes(config, "elva"), np.float32, place(config))
        params = unflatten_paths(load_store(store, targets, config).params)
        return Run(config=config, stage=stage, params=params, tokenizer_dir=store.path, step=step)


def elva_config(store: TensorStore, path: str | Path) -> tuple[Config, str, int]:
    """`folder_config` of an ELVA's folder.

    Raises:
      ConvertError: a folder with another kind of model.
    """
    if store.config.get("model_type") != elva.MODEL_TYPE:
        raise ConvertError(
            f"{path}: is of {describe(store.config)}, not an ELVA; only an ELVA answers questions"
            " about videos"
        )
    return folder_config(store)


def folder_config(store: TensorStore) -> tuple[Config, str, int]:
    """Configuration, stage and step of the run that an ELVA's folder was exported from.

    Without a record of that run, the configuration has the model of the folder and default values.
    """
    if (store.path / elva.RUN_FILE).is_file():
        run = read_json(store.path / elva.RUN_FILE)
        return config_from_dict(run["config"]), run["stage"], run["step"]
    config = schema.base()
    config.model.update(elva.from_hf_config(store.config))
    config.stages[STAGE] = schema.stage()
    config.stages[STAGE].merging = bool(store.config.get("merging"))
    config.stages[STAGE].data.update(elva.data_settings(store.path))
    config.curriculum = (STAGE,)
    return freeze(config), STAGE, 0
