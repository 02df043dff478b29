"""The weights of a run, for inference, export and other runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from elva_jax.checkpoints.checksums import find_damage
from elva_jax.checkpoints.format import explain_damage, has_checkpoint, open_reader, saved_steps
from elva_jax.config.schema import Config
from elva_jax.config.serialize import config_from_dict
from elva_jax.config.validate import check_model
from elva_jax.errors import CheckpointError, ConfigError
from elva_jax.models import lora
from elva_jax.utils.numbers import shown
from elva_jax.utils.read import read_json
from elva_jax.utils.trees import flatten_paths, key_path, unflatten_paths

ITEMS = ("params", "meta")  # the items of a step that are read here
WHAT_TO_GIVE = "give a run's workdir, a stage's directory in it, or one saved step"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A trained model."""

    config: Config  # of the whole run
    stage: str
    params: dict[str, Any]  # stages of kind elva: {"elva": ..., "guidance": ...}
    tokenizer_dir: Path
    step: int

    def with_dtype(self, dtype: Literal["float32", "bfloat16"]) -> Run:
        """The same weights with another compute type."""
        model = dataclasses.replace(self.config.model, dtype=dtype)
        return dataclasses.replace(self, config=dataclasses.replace(self.config, model=model))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """Parameters read from a source."""

    params: dict[str, jax.Array]  # by '/'-joined path: those that were wanted and are in the source
    unused: tuple[str, ...]  # paths in the source that were not wanted
    origin: str  # a description of the source, for messages


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedRun:
    """A saved step whose parameters are read one by one, so that they need not all be in memory."""

    config: Config  # of the whole run
    stage: str
    tokenizer_dir: Path
    step: int
    shapes: dict[str, jax.ShapeDtypeStruct]  # by '/'-joined path
    path: Path  # the directory of the step
    factors: frozenset[str] = frozenset()  # paths of LoRA factors, which `read` merges

    def read(self, name: str) -> np.ndarray:
        """One parameter, in host memory.

        Raises:
          CheckpointError: it is damaged.
        """
        leaf, (a, b) = self.read_raw(name), (lora.factor_of(name, factor) for factor in "ab")
        if a not in self.factors:
            return leaf
        factors, alpha = (self.read_raw(a), self.read_raw(b)), _alpha(self.config, self.stage)
        return np.asarray(lora.adapted(leaf, *factors, alpha))

    def read_raw(self, name: str) -> np.ndarray:
        """A factor, or a parameter without its factors, as it was saved; errors as `read`."""
        args = ocp.args.PyTreeRestore(
            item=unflatten_paths({name: 0}),
            restore_args=unflatten_paths({name: ocp.RestoreArgs(restore_type=np.ndarray)}),
            partial_restore=True,
        )
        with explain_damage(self.path), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            (leaf,) = jax.tree.leaves(reader.restore(self.path / "params", args=args))
        return leaf

    def load_float32(self, shardings: Mapping[str, Any] | None = None) -> Run:
        """All parameters, as `load_run` returns them, in float32."""
        float32 = dict.fromkeys(self.shapes, np.dtype(np.float32))
        return _load(self.path, shardings or {}, float32)


def load_run(
    path: str | Path,
    *,
    kind: str = "elva",
    shardings: Mapping[str, Any] | None = None,
    dtypes: Mapping[str, Any] | None = None,
) -> Run:
    """Loads the weights of a run, without its optimizer; LoRA factors are merged.

    Args:
      path: a run's workdir, one stage's directory, or one saved step. In a workdir, the last stage
        of the wanted kind that has saved a step is loaded.
      kind: the wanted `stages.*.kind`.
      shardings: sharding by '/'-joined parameter path; the default is the first device.
      dtypes: floating dtype by '/'-joined parameter path; the default is the saved dtype.

    Raises:
      CheckpointError: there is no checkpoint, or it is damaged.
    """
    return _load(_find_intact(path, kind), shardings or {}, dtypes or {})


def load_run_params(
    path: str | Path, targets: Mapping[str, jax.ShapeDtypeStruct], *, kind: str
) -> Loaded:
    """Reads the parameters of `targets` that a run has, into their shardings and dtypes.

    Args:
      path: as for `load_run`.
      targets: shapes, dtypes and shardings by '/'-joined path.
      kind: as for `load_run`.

    Raises:
      CheckpointError: there is no checkpoint, or it is damaged.
    """
    run = load_run(
        path,
        kind=kind,
        shardings={name: leaf.sharding for name, leaf in targets.items()},
        dtypes={name: leaf.dtype for name, leaf in targets.items()},
    )
    saved = flatten_paths(run.params)
    return Loaded(
        params={name: leaf for name, leaf in saved.items() if name in targets},
        unused=tuple(sorted(saved.keys() - targets.keys())),
        origin=f"stage {run.stage}, step {run.step}",
    )


def open_run(path: str | Path, *, kind: str = "elva") -> SavedRun:
    """Opens what `load_run` loads, without reading any parameter yet.

    Raises:
      CheckpointError: there is no checkpoint, or it is damaged.
    """
    step = _find_intact(path, kind)
    with explain_damage(step), open_reader(ITEMS) as reader:
        tree = reader.metadata(step).item_metadata["params"].tree
        meta = reader.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
    shapes = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for name, leaf in flatten_paths(dict(tree)).items()
    }
    return SavedRun(
        **_common_fields(step, meta),
        shapes={name: leaf for name, leaf in shapes.items() if not lora.is_factor(name)},
        path=step,
        factors=frozenset(filter(lora.is_factor, shapes)),
    )


def _load(step: Path, shardings: Mapping[str, Any], dtypes: Mapping[str, Any]) -> Run:
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def target(path: tuple[Any, ...], leaf: Any) -> jax.ShapeDtypeStruct:
        name, dtype = key_path(path), leaf.dtype
        if jnp.issubdtype(dtype, jnp.floating):
            dtype = dtypes.get(name, dtype)
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=shardings.get(name, default))

    with explain_damage(step), open_reader(ITEMS) as reader:
        tree = reader.metadata(step).item_metadata["params"].tree
        params = ocp.args.StandardRestore(jax.tree_util.tree_map_with_path(target, dict(tree)))
        out = reader.restore(
            step, args=ocp.args.Composite(params=params, meta=ocp.args.JsonRestore())
        )
    fields = _common_fields(step, out["meta"])
    return Run(
        **fields, params=lora.merge(out["params"], _alpha(fields["config"], fields["stage"]))
    )


def _common_fields(step: Path, meta: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "config": saved_config(meta["config"], step),
        "stage": meta["stage"],
        "tokenizer_dir": step.parents[2] / "tokenizer",
        "step": int(step.name),
    }


def saved_config(values: Any, where: Path) -> Config:
    """A run's configuration as a file or a saved step has it.

    Raises:
      CheckpointError: naming the place and the key that cannot be.
    """
    try:
        if not isinstance(values, Mapping):
            raise ConfigError(f"expected a group of settings, got {shown(values)}")
        config = config_from_dict(values)
        check_model(config)
        for name in (*config.stages, *config.curriculum):
            if name in ("", "..") or Path(name).name != name:  # stages are folders of the run
                raise ConfigError(f"the stage {name!r} is not the name of a folder in it")
    except ConfigError as error:
        raise CheckpointError(f"{where}: its configuration cannot be: {error}") from None
    return config


def _alpha(config: Config, stage: str) -> float:
    """LoRA's alpha in a stage; unused where the stage has no factors."""
    return float(config.stages[stage].optimizer.lora.alpha) if stage in config.stages else 1.0


def _find_intact(path: str | Path, kind: str) -> Path:
    """The directory of the saved step that a path means, with its weights checked.

    Several processes divide the files among them; one that finds damage ends the run for all.
    """
    step = _find(Path(path).absolute(), kind)
    if problem := find_damage(step, ITEMS):
        before = [other for other in saved_steps(step.parents[1]) if other < int(step.name)]
        hint = "there is no step before"
        if before:
            hint = f"give {step.with_name(str(before[-1]))}, the step before"
        raise CheckpointError(f"{step}: is damaged ({problem}); {hint}")
    return step


def _find(path: Path, kind: str) -> Path:
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such directory; {WHAT_TO_GIVE}")
    if path.name.isdecimal() and path.parent.name == "checkpoints":
        return path
    if (path / "checkpoints").is_dir():
        stage = path
    elif (path / "config.json").is_file():
        file = path / "config.json"
        config = saved_config(read_json(file, CheckpointError), file)
        stages = [
            name
            for name in config.curriculum
            if name in config.stages
            and config.stages[name].kind == kind
            and has_checkpoint(path / name)
        ]
        if not stages:
            raise CheckpointError(f"{path}: no stage of kind {kind} has saved a checkpoint yet")
        stage = path / stages[-1]
    else:
        raise CheckpointError(f"{path}: no checkpoint here; {WHAT_TO_GIVE}")
    steps = saved_steps(stage)
    if not steps:
        raise CheckpointError(f"{stage}: has no complete checkpoint yet")
    return stage / "checkpoints" / str(steps[-1])
