"""Weights from any source straight into sharded parameters.

A source is a Hugging Face folder, a hub name, a converted checkpoint or a run.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from elva_jax.checkpoints.arrays import Index
from elva_jax.checkpoints.restore import Loaded, load_run_params
from elva_jax.config.schema import Config, TeacherConfig
from elva_jax.errors import ConvertError
from elva_jax.hf import (
    bert,
    dinov2,
    elva,
    eva_clip,
    hiera,
    languagebind,
    param_mapping,
    qwen2,
    siglip,
    vivit,
)
from elva_jax.hf.param_mapping import Source, Table
from elva_jax.hf.tensor_store import (
    CONFIGS,
    TensorStore,
    is_adapter,
    is_hub_name,
    open_store,
    read_json,
)
from elva_jax.models.build import parameter_shapes
from elva_jax.utils.arrays import aligned_copy, aligned_empty

BAND = 64  # rows of a matrix that are transposed at a time
STAGE_KIND = {
    "vision": "teacher",
    "text": "teacher",
}  # kinds of stages that are not named after their subtree


class TowerFormat(Protocol):
    """The module of a family of vision towers: it reads their folders."""

    MODEL_TYPES: tuple[str, ...]  # of its config.json; empty where that has none

    def read_config(self, config: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Values of `config.teacher` from config.json."""
        ...

    def table(self, config: Mapping[str, Any], teacher: TeacherConfig, store: TensorStore) -> Table:
        """The tensor names of a folder for a run's `config.teacher`."""
        ...


TOWERS: tuple[TowerFormat, ...] = (siglip, dinov2, vivit, languagebind)
# Kinds that cannot be read, and the module whose refusal says what to do instead.
REFUSED: dict[str, TowerFormat] = {"siglip2": siglip}
TOWER_TYPES = {kind: tower for tower in TOWERS for kind in tower.MODEL_TYPES}
# Families whose files have no model_type: name, test of the configuration, module.
UNTYPED: tuple[tuple[str, Callable[[Mapping[str, Any]], bool], TowerFormat], ...] = (
    ("EVA-CLIP", eva_clip.is_eva_clip, eva_clip),
    ("Hiera", hiera.is_hiera, hiera),
)


def is_hf_source(path: str | Path) -> bool:
    """Whether a path is a Hugging Face folder or hub name, not a run or a converted checkpoint."""
    folder = Path(path)
    if not folder.is_dir():
        return is_hub_name(str(path))
    if any(folder.glob("*.safetensors")) or is_adapter(folder):
        return True
    configs = [read_json(folder / name) for name in CONFIGS if (folder / name).is_file()]
    return any(
        "model_type" in config or "vision_cfg" in config or hiera.is_hiera(config)
        for config in configs
    )


def load_params(
    source: str | Path,
    targets: Mapping[str, jax.ShapeDtypeStruct],
    config: Config,
    *,
    subtree: str = "elva",
    allow_pickle: bool = False,
) -> Loaded:
    """Reads parameters one by one into the shardings and dtypes of `targets`.

    The host never holds a second copy of them all.

    Args:
      source: a Hugging Face folder, a hub name, a converted checkpoint, or a run.
      targets: shapes, dtypes and shardings by '/'-joined path, such as elva/decoder/norm/scale or
        vision/patch_bias.
      config: the run's configuration, which a Hugging Face folder must match.
      subtree: elva | vision | text, the model that is wanted: of a run, the last stage that trains
        one.
      allow_pickle: whether .bin and .pt files may be read.

    Raises:
      ConvertError: a folder that is damaged or does not fit the configuration.
      CheckpointError: a run without a matching checkpoint, or a damaged one.
    """
    if is_hf_source(source):
        store = open_store(source, allow_pickle=allow_pickle)
        return load_store(store, targets, config, subtree=subtree)
    return load_run_params(source, targets, kind=STAGE_KIND.get(subtree, subtree))


def load_store(
    store: TensorStore,
    targets: Mapping[str, jax.ShapeDtypeStruct],
    config: Config,
    *,
    subtree: str = "elva",
) -> Loaded:
    """`load_params` from a folder that is already open."""
    table, prefix = _table(store, config, subtree)
    params = load_table(store, table, prefix, targets)
    return Loaded(params=params, unused=(), origin=describe(store.config))


def load_table(
    store: TensorStore, table: Table, prefix: str, targets: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """Those of `targets`, by path, that a table has rules for; its paths lack `prefix`."""
    wanted = {
        path.removeprefix(prefix): leaf for path, leaf in targets.items() if path.startswith(prefix)
    }
    sources = _plan(store, table, {path: leaf.shape for path, leaf in wanted.items()})
    # A parameter is in memory twice while it moves to its device, so the largest go first, while
    # little else is there; waiting for each keeps such copies from piling up on the host.
    largest_first = sorted(sources, key=lambda path: math.prod(wanted[path].shape), reverse=True)
    return {
        prefix + path: jax.block_until_ready(_read(store, table, sources[path], wanted[path]))
        for path in largest_first
    }


class SavedFolder:
    """An ELVA's open Hugging Face folder as a `ParamSource`, which says what its members are.

    Args:
      store: the folder.
      config: the configuration of its run.
      stage: the stage that it was exported from.
      step: the training step.

    Raises:
      ConvertError: it does not fit the configuration.
    """

    def __init__(self, store: TensorStore, config: Config, stage: str, step: int):
        self.config, self.stage, self.step = config, stage, step
        self.tokenizer_dir = store.path
        self._store = store
        shapes = parameter_shapes(config, "elva")
        self._table, self._prefix = _table(store, config, "elva")
        wanted = {path.removeprefix(self._prefix): shape for path, shape in shapes.items()}
        self._sources = _plan(store, self._table, wanted)
        self.shapes = {
            path: jax.ShapeDtypeStruct(shape, self._dtype(path.removeprefix(self._prefix)))
            for path, shape in shapes.items()
        }

    def _dtype(self, path: str) -> np.dtype:
        """The type that holds every value of a parameter."""
        names = filter(None, self._sources[path].names)
        found = {self._store.dtype(name) for name in names} - {np.dtype(np.float64)}
        return next(iter(found)) if len(found) == 1 else np.dtype(np.float32)

    def rows_at_once(self, name: str) -> int:
        """One: each layer is a tensor of its own."""
        return 1

    @contextlib.contextmanager
    def rows(
        self, name: str, rows: range | None, index: Index, dtype: Any
    ) -> Iterator[Sequence[np.ndarray]]:
        """See `ParamSource`; a matrix that PyTorch has transposed is a view of the file."""
        source, leaf = self._sources[name.removeprefix(self._prefix)], self.shapes[name]
        shape = leaf.shape if rows is None else leaf.shape[1:]
        at = index or tuple(slice(0, size) for size in shape)
        names = [source.names[row] for row in rows or (0,)]
        dtype = leaf.dtype if dtype is None else np.dtype(dtype)
        try:
            yield [self._part(source, theirs, at, shape, dtype) for theirs in names]
        finally:
            for theirs in filter(None, names):
                self._store.release(theirs)

    def _part(
        self, source: Source, name: str | None, at: Index, shape: tuple[int, ...], dtype: np.dtype
    ) -> np.ndarray:
        if name is None:
            return np.zeros([i.stop - i.start for i in at], dtype)
        self._store.prefetch(name)
        stored = self._store.read(name)
        value = self._table.to_ours(source.rule, stored)
        part = value[at]
        if value.shape != shape or stored.dtype == np.float64:
            out = np.empty([i.stop - i.start for i in at], np.float32)
            _copy(out, value, at, shape)
            self._store.refuse_non_finite(name, out)
            return out if dtype == np.float32 else aligned_copy(out, dtype)
        # Whole tensors are checked in the order of the file.
        self._store.refuse_non_finite(name, stored if part.shape == value.shape else part)
        if part.dtype == dtype and not part.flags.c_contiguous:
            return part
        # Also so that no array on a device is the file, which may change.
        out = aligned_empty(part.shape, dtype)
        _assign(out, part)
        return out


def make_targets(
    shapes: Mapping[str, tuple[int, ...]], dtype: Any, shardings: Mapping[str, Any] | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Targets for `load_params`; parameters without a sharding go to the first device."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    placed = shardings or {}
    return {
        path: jax.ShapeDtypeStruct(shape, dtype, sharding=placed.get(path, device))
        for path, shape in shapes.items()
    }


def describe(config: Mapping[str, Any]) -> str:
    """The kind of model that a folder's configuration describes, for messages."""
    names = (name for name, matches, _ in UNTYPED if matches(config))
    return next(names, f"model_type {config.get('model_type')}")


def read_config(config: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """The group of our configuration (model | teacher) that a folder describes, and its values.

    Raises:
      ConvertError: a kind of model that cannot be read.
    """
    kind = config.get("model_type")
    if tower := _tower_format(config):
        return "teacher", tower.read_config(config, where)
    if kind in qwen2.MODEL_TYPES:
        return "model", qwen2.read_config(config, where)
    if kind == elva.MODEL_TYPE:
        return "model", elva.from_hf_config(config).to_dict()
    known = ", ".join((*qwen2.MODEL_TYPES, elva.MODEL_TYPE, *TOWER_TYPES))
    raise ConvertError(
        f"{where}: its config.json has model_type {kind!r}; one of {known}, or the authors'"
        f" configuration of an {' or '.join(name for name, _, _ in UNTYPED)}, can be read"
    )


def _tower_format(config: Mapping[str, Any]) -> TowerFormat | None:
    """The module that reads a vision tower's folder; None: it holds a language model or nothing."""
    for _, matches, tower in UNTYPED:
        if matches(config):
            return tower
    return (TOWER_TYPES | REFUSED).get(str(config.get("model_type")))


def _table(store: TensorStore, config: Config, subtree: str) -> tuple[Table, str]:
    """The names of a folder's tensors, and the beginning of our paths that the table leaves out."""
    if subtree == "text":
        if config.text_tower.kind == "bert":
            return bert.table(store.config, config.text_tower, store), ""
        return siglip.text_table(store.config, config.teacher, store), ""
    group, _ = read_config(store.config, str(store.path))
    if (group == "teacher") != (subtree == "vision"):
        wants = "a vision tower" if subtree == "vision" else "an ELVA, a Qwen2 or a Llama"
        raise ConvertError(
            f"{store.path}: is of {describe(store.config)}, but {wants} is wanted here; see"
            " init_from and teacher.init_from"
        )
    if tower := _tower_format(store.config):
        return tower.table(store.config, config.teacher, store), ""
    decoder = elva if store.config["model_type"] == elva.MODEL_TYPE else qwen2
    return decoder.table(store.config, config.model, store), "elva/"


def _plan(
    store: TensorStore, table: Table, wanted: Mapping[str, tuple[int, ...]]
) -> dict[str, Source]:
    return param_mapping.plan(
        table,
        {name: store.shape(name) for name in store.names()},
        {name: store.dtype(name) for name in store.names()},
        wanted,
        str(store.path),
    )


def _read(
    store: TensorStore, table: Table, source: Source, target: jax.ShapeDtypeStruct
) -> jax.Array:
    """One parameter; the part on each device is read from the memory maps on its own."""

    def part(index: Index | None) -> np.ndarray:
        pairs = zip(index or (), target.shape, strict=True)
        at = tuple(slice(*i.indices(size)) for i, size in pairs)
        out = np.empty([i.stop - i.start for i in at], target.dtype)
        if source.rule.stacked:
            for layer, name in zip(out, source.names[at[0]], strict=True):
                fill(layer, name, at[1:], target.shape[1:])
        else:
            fill(out, source.names[0], at, target.shape)
        return out

    def fill(out: np.ndarray, name: str | None, at: Index, shape: tuple[int, ...]) -> None:
        if name is None:
            out[...] = 0
            return
        _copy(out, table.to_ours(source.rule, store.read(name)), at, shape)
        store.refuse_non_finite(name, out)
        store.release(name)

    return jax.make_array_from_callback(target.shape, target.sharding, part)


def _copy(out: np.ndarray, value: np.ndarray, at: Index, shape: tuple[int, ...]) -> None:
    """Copies the slice `at` of a tensor to `out`, in its dtype.

    Where `shape` is longer than the tensor, new rows of a vocabulary are the mean of the others:
    neither likely nor far from any of them.
    """
    stored = tuple(
        slice(i.start, min(i.stop, size)) for i, size in zip(at, value.shape, strict=True)
    )
    inside = tuple(slice(0, max(i.stop - i.start, 0)) for i in stored)
    _assign(out[inside], value[stored])
    for axis, (theirs, ours) in enumerate(zip(value.shape, shape, strict=True)):
        if theirs < ours:
            mean = value.mean(axis, keepdims=True, dtype=np.float32)
            new = (*inside[:axis], slice(inside[axis].stop, None))
            out[new] = mean[(*at[:axis], slice(None), *at[axis + 1 :])]


def _assign(out: np.ndarray, value: np.ndarray) -> None:
    """out[...] = value; transposed matrices in bands of rows on disk, which is much faster."""
    if value.ndim == 2 and value.strides[0] < value.strides[1]:
        for i in range(0, value.shape[1], BAND):
            out[:, i : i + BAND] = value[:, i : i + BAND]
    else:
        out[...] = value
