"""The model of a run of lmms-eval, and what tells its weights from others."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from elva_jax.checkpoints.format import saved_steps
from elva_jax.checkpoints.restore import open_run
from elva_jax.errors import CheckpointError
from elva_jax.evaluation.lmms.options import Options
from elva_jax.evaluation.weights import HashedWeights
from elva_jax.hf.load import is_hf_source
from elva_jax.hf.open_model import opening_source
from elva_jax.inference.load import load_source
from elva_jax.inference.model import ElvaModel
from elva_jax.parallel.mesh import make_mesh


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """A model with the step and the hash of its weights."""

    model: ElvaModel
    step: int
    weights: str

    @property
    def identity(self) -> str:
        """Step, hash and quantization, as they stand in the name of the model."""
        scheme = self.model.weights
        return f"step{self.step}-{self.weights}" + (f"-{scheme}" if scheme else "")


def open_options(options: Options) -> Opened:
    """Loads the model that `--model_args` names.

    Raises:
      CheckpointError: nothing to load there, no such step, or other weights than `weights` says.
      ConfigError: no such stage, or a mesh that does not fit the devices.
    """
    mesh_config = options.mesh_config
    mesh = None if mesh_config is None else make_mesh(mesh_config)

    with opening_source(_saved(options)) as source:
        if options.step not in (None, source.step):
            raise CheckpointError(
                f"{options.pretrained}: is of step {source.step}, not {options.step}"
            )
        hashed = HashedWeights(source)
        model = load_source(
            source,
            dtype=options.dtype,
            mesh=mesh,
            stage=options.stage,
            weights=options.quantize,
            prefill_chunk=options.prefill_chunk,
            see=hashed,
        )
        step, weights = source.step, hashed.hexdigest()
    if options.weights is not None and not weights.startswith(options.weights):
        raise CheckpointError(
            f"{options.pretrained}: the weights of step {step} have the hash {weights}, not"
            f" {options.weights}; they have changed: leave out weights=, or name the step"
        )
    if options.longest_edge is not None:
        model.data = dataclasses.replace(model.data, longest_edge=options.longest_edge)
    return Opened(model=model, step=step, weights=weights)


def _saved(options: Options) -> str | Path:
    """The stage and step that are meant."""
    path = Path(options.pretrained)
    if options.stage is not None and (path / options.stage / "checkpoints").is_dir():
        path = path / options.stage
    if options.step is None or is_hf_source(options.pretrained):
        return options.pretrained if path == Path(options.pretrained) else path
    newest = open_run(path).path
    wanted = newest.with_name(str(options.step))
    if not wanted.is_dir():
        saved = ", ".join(map(str, saved_steps(newest.parents[1])))
        raise CheckpointError(f"{path}: has no step {options.step}; saved are {saved}")
    return wanted
