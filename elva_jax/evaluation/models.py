"""The model that is evaluated, and where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from elva_jax.checkpoints.restore import Run
from elva_jax.config.schema import Config
from elva_jax.hf.open_model import open_run_or_folder
from elva_jax.inference.model import ElvaModel
from elva_jax.inference.params import saved_shardings


def open_elva(
    model: str | Path | Run | ElvaModel, mesh: Mesh | None = None
) -> tuple[ElvaModel, dict[str, Any]]:
    """The model, and its checkpoint and step (None where they are not known).

    Args:
      model: path of a run, a saved step or an exported folder; or the model itself.
      mesh: devices over which weights that are read here are sharded; None: the first one.

    Raises:
      ElvaError: no such checkpoint, or a damaged one.
    """
    if isinstance(model, ElvaModel):
        return model, {"checkpoint": None, "step": None}

    def place(config: Config) -> dict[str, Any]:
        return {} if mesh is None else saved_shardings(config.model, mesh)

    path = None if isinstance(model, Run) else str(model)
    run = model if isinstance(model, Run) else open_run_or_folder(model, place)
    elva = ElvaModel.from_run(run, mesh=mesh)
    return elva, {"checkpoint": path, "step": int(run.step)}
