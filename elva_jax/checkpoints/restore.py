"""The weights of a run, for inference, export and other runs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from elva_jax.checkpoints.arrays import Index, SavedArrays
from elva_jax.checkpoints.checksums import find_damage
from elva_jax.checkpoints.format import explain_damage, has_checkpoint, saved_steps
from elva_jax.checkpoints.source import needed, place
from elva_jax.config.schema import Config
from elva_jax.config.serialize import config_from_dict
from elva_jax.config.validate import check_model
from elva_jax.errors import CheckpointError, ConfigError
from elva_jax.ops import lora
from elva_jax.utils.arrays import aligned_copy
from elva_jax.utils.background import checking
from elva_jax.utils.numbers import shown
from elva_jax.utils.read import read_json
from elva_jax.utils.trees import unflatten_paths

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
    arrays: SavedArrays  # parameters and LoRA factors as they were saved
    path: Path  # the directory of the step

    @functools.cached_property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and saved dtype of each parameter, by '/'-joined path; without LoRA's factors."""
        saved = self.arrays.shapes.items()
        return {name: leaf for name, leaf in saved if not lora.is_factor(name)}

    @functools.cached_property
    def factors(self) -> frozenset[str]:
        """The paths of LoRA's factors, which every method but `read_raw` merges."""
        return frozenset(filter(lora.is_factor, self.arrays.shapes))

    def read(self, name: str, index: Index = (), dtype: Any = None) -> np.ndarray:
        """A parameter or a slice of it, in host memory.

        Args:
          name: its path.
          index: a slice of each of its first axes.
          dtype: the type of the result, and of the matrix to which factors are added in float32;
            None: as saved.

        Raises:
          CheckpointError: it is damaged.
        """
        leaf = self.read_raw(name, index, dtype)
        a, b = (lora.factor_of(name, factor) for factor in "ab")
        if a not in self.factors:
            return leaf
        # [..., K, R] and [..., R, N] of a matrix [..., K, N]
        *stack, inputs, outputs = (*index, *(slice(None),) * (leaf.ndim - len(index)))
        factors = (
            self.read_raw(a, (*stack, inputs)),
            self.read_raw(b, (*stack, slice(None), outputs)),
        )
        return np.asarray(lora.adapted(leaf, *factors, _alpha(self.config, self.stage)))

    def read_raw(self, name: str, index: Index = (), dtype: Any = None) -> np.ndarray:
        """A factor, or a parameter without its factors; arguments and errors as `read`."""
        with explain_damage(self.path):
            return self.arrays.read(name, index, dtype)

    def rows_at_once(self, name: str) -> int:
        """See `ParamSource`."""
        return self.arrays.rows_at_once(name)

    @contextlib.contextmanager
    def rows(
        self, name: str, rows: range | None, index: Index, dtype: Any
    ) -> Iterator[Sequence[np.ndarray]]:
        """See `ParamSource`; factors are added to float32 matrices before these are cast."""
        whole = index if rows is None else (slice(rows.start, rows.stop), *index)
        merged = lora.factor_of(name, "a") in self.factors
        read = self.read(name, whole, np.float32 if merged else dtype)
        if dtype is not None and read.dtype != dtype:
            read = aligned_copy(read, dtype)
        yield [read] if rows is None else list(read)

    def load_float32(self, shardings: Mapping[str, Any] | None = None) -> Run:
        """All parameters, as `load_run` returns them, in float32."""
        float32 = dict.fromkeys(self.shapes, np.dtype(np.float32))
        return _load(self, shardings or {}, float32)


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
    with opening_run(path, kind=kind) as run:
        return _load(run, shardings or {}, dtypes or {})


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
    with opening_run(path, kind=kind) as run:
        wanted = {name: leaf for name, leaf in targets.items() if name in run.shapes}
        params = {
            name: _whole(run, name, leaf.sharding, leaf.dtype) for name, leaf in wanted.items()
        }
        return Loaded(
            params=params,
            unused=tuple(sorted(run.shapes.keys() - targets.keys())),
            origin=f"stage {run.stage}, step {run.step}",
        )


def open_run(path: str | Path, *, kind: str = "elva") -> SavedRun:
    """Opens what `load_run` loads, without reading any parameter yet.

    Raises:
      CheckpointError: there is no checkpoint, or it is damaged.
    """
    step = _find(Path(path).absolute(), kind)
    _refuse_damage(step)
    return _open(step)


@contextlib.contextmanager
def opening_run(path: str | Path, *, kind: str = "elva") -> Iterator[SavedRun]:
    """`open_run` that compares checksums while the block reads; the block ends when all are right.

    Raises:
      CheckpointError: there is no checkpoint, or it is damaged.
    """
    step = _find(Path(path).absolute(), kind)
    with checking(functools.partial(_refuse_damage, step)):
        yield _open(step)


def _open(step: Path) -> SavedRun:
    with explain_damage(step):
        meta = read_json(step / "meta" / "metadata", CheckpointError)
        return SavedRun(
            config=saved_config(meta["config"], step),
            stage=meta["stage"],
            tokenizer_dir=step.parents[2] / "tokenizer",
            step=int(step.name),
            arrays=SavedArrays(step / "params"),
            path=step,
        )


def _load(run: SavedRun, shardings: Mapping[str, Any], dtypes: Mapping[str, Any]) -> Run:
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    params = {}
    for name, leaf in run.shapes.items():
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        dtype = dtypes.get(name, leaf.dtype) if floating else leaf.dtype
        params[name] = _whole(run, name, shardings.get(name, default), dtype)
    return Run(
        config=run.config,
        stage=run.stage,
        params=unflatten_paths(params),
        tokenizer_dir=run.tokenizer_dir,
        step=run.step,
    )


def _whole(run: SavedRun, name: str, sharding: Any, dtype: Any) -> jax.Array:
    """One parameter on its devices."""
    shape = run.shapes[name].shape
    index = needed(shape, sharding)
    return place(run.read(name, index, dtype), shape, index, sharding)


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


def _refuse_damage(step: Path) -> None:
    """Checks the weights of a saved step.

    Several processes divide the files among them; one that finds damage ends the run for all.
    """
    if problem := find_damage(step, ITEMS):
        before = [other for other in saved_steps(step.parents[1]) if other < int(step.name)]
        hint = "there is no step before"
        if before:
            hint = f"give {step.with_name(str(before[-1]))}, the step before"
        raise CheckpointError(f"{step}: is damaged ({problem}); {hint}")


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
