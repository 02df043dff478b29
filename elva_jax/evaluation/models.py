"""The model that is evaluated, and where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from elva_jax.checkpoints.restore import Run
from elva_jax.errors import ConfigError
from elva_jax.evaluation.weights import HashedWeights, weights_hash
from elva_jax.hf.open_model import opening_source
from elva_jax.inference.load import load_source
from elva_jax.inference.model import ElvaModel
from elva_jax.inference.quantization import Scheme, check_scheme
from elva_jax.parallel.lockstep import Lockstep, lockstep_of

Opened = tuple[ElvaModel, dict[str, Any]]  # a model and where it comes from


def open_elva(
    model: str | Path | Run | ElvaModel | Opened,
    mesh: Mesh | None = None,
    weights: Scheme | None = None,
    prefill_chunk: int | None = None,
) -> Opened:
    """The model, and its checkpoint and step (None where they are not known) and weights_hash.

    Args:
      model: path of a run, a saved step or an exported folder; the model itself; or what this
        function has returned, which is returned again.
      mesh: devices of a model that is read here: its weights and every batch are split over them;
        None: the first one.
      weights: how matrices are quantized; None: not at all, or as the model itself has them.
      prefill_chunk: tokens of a prompt that prefill takes at a time; None: the default, or as the
        model itself has it. See `elva_jax.load`.

    Raises:
      ElvaError: no such checkpoint, a damaged one, or a model with other weights or chunks.
    """
    if isinstance(model, tuple):
        return model
    if isinstance(model, ElvaModel):
        if weights not in (None, model.weights):
            have = model.weights or model.model_config.dtype
            raise ConfigError(f"weights: the model that was passed has {have}, not {weights}")
        if prefill_chunk not in (None, model.engine.prefill_chunk):
            raise ConfigError(
                f"prefill_chunk: the model that was passed has {model.engine.prefill_chunk},"
                f" not {prefill_chunk}"
            )
        params = _stored(model) if model.weights else model.params
        return model, _origin(None, None, weights_hash(params))
    if weights is not None:
        check_scheme(weights)
    if isinstance(model, Run):
        origin = _origin(None, int(model.step), weights_hash(model.params))
        return ElvaModel.from_run(
            model, mesh=mesh, weights=weights, prefill_chunk=prefill_chunk
        ), origin
    with opening_source(model) as source:
        hashed = HashedWeights(source, lockstep_of(mesh))
        elva = load_source(
            source, mesh=mesh, weights=weights, prefill_chunk=prefill_chunk, see=hashed
        )
    return elva, _origin(str(model), int(source.step), hashed.hexdigest())


def lockstep_for(model: str | Path | Run | ElvaModel | Opened, mesh: Mesh | None) -> Lockstep:
    """The processes that ask a model together: those of its mesh, or of `mesh` if it is opened."""
    elva = model[0] if isinstance(model, tuple) else model
    if isinstance(elva, ElvaModel):
        return elva.engine.placement.lockstep
    return lockstep_of(mesh)


def _stored(model: ElvaModel) -> dict[str, Any]:
    """The arrays of quantized weights by name."""
    leaves = jax.tree_util.tree_leaves_with_path(model.engine.weights)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _origin(path: str | None, step: int | None, weights: str) -> dict[str, Any]:
    return {"checkpoint": path, "step": step, "weights_hash": weights}
