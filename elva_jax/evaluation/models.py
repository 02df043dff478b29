"""The model that is evaluated, and where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from elva_jax.checkpoints.restore import Run
from elva_jax.config.schema import Config
from elva_jax.evaluation.weights import weights_hash
from elva_jax.hf.open_model import open_run_or_folder
from elva_jax.inference.model import ElvaModel
from elva_jax.inference.params import saved_shardings


def open_elva(
    model: str | Path | Run | ElvaModel, mesh: Mesh | None = None
) -> tuple[ElvaModel, dict[str, Any]]:
    """The model, and its checkpoint and step (None where they are not known) and weights_hash.

    Args:
      model: path of a run, a saved step or an exported folder; or the model itself.
      mesh: devices of a model that is read here: its weights and every batch are split over them;
        None: the first one.

    Raises:
      ElvaError: no such checkpoint, or a damaged one.
    """
    if isinstance(model, ElvaModel):
        return model, _origin(None, None, model.params)

    def place(config: Config) -> dict[str, Any]:
        return {} if mesh is None else saved_shardings(config.model, mesh)

    path = None if isinstance(model, Run) else str(model)
    run = model if isinstance(model, Run) else open_run_or_folder(model, place)
    return ElvaModel.from_run(run, mesh=mesh), _origin(path, int(run.step), run.params)


def _origin(path: str | None, step: int | None, params: Any) -> dict[str, Any]:
    return {"checkpoint": path, "step": step, "weights_hash": weights_hash(params)}
