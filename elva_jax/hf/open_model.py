"""Opening a model for inference: a run, a converted checkpoint or an ELVA's Hugging Face folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from elva_jax.checkpoints.restore import Run, open_run
from elva_jax.config import schema
from elva_jax.config.schema import Config
from elva_jax.config.serialize import config_from_dict, freeze
from elva_jax.errors import ConvertError
from elva_jax.hf import elva
from elva_jax.hf.load import describe, is_hf_source, load_store, make_targets
from elva_jax.hf.tensor_store import TensorStore, open_store, read_json
from elva_jax.models.build import parameter_shapes
from elva_jax.utils.quiet import quiet_libraries
from elva_jax.utils.trees import unflatten_paths

Place = Callable[[Config], Mapping[str, Any]]
STAGE = "converted"  # the stage of a configuration made for weights that no run has trained


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
    run = open_run(path)
    return run.load_float32(place(run.config))


def load_folder(path: str | Path, place: Place = lambda config: {}) -> Run:
    """An ELVA's Hugging Face folder as a run; see `open_run_or_folder`.

    Raises:
      ConvertError: a folder with another kind of model, or a damaged one.
    """
    store = open_store(path)
    if store.config.get("model_type") != elva.MODEL_TYPE:
        raise ConvertError(
            f"{path}: is of {describe(store.config)}, not an ELVA; only an ELVA answers questions"
            " about videos"
        )
    config, stage, step = folder_config(store)
    targets = make_targets(parameter_shapes(config, "elva"), np.float32, place(config))
    params = unflatten_paths(load_store(store, targets, config).params)
    return Run(config=config, stage=stage, params=params, tokenizer_dir=store.path, step=step)


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
