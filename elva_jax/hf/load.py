"""Weights of any source straight into sharded parameters: a Hugging Face folder, a hub name, a converted checkpoint, or a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from elva_jax.checkpoints.restore import Run, load_run, open_run
from elva_jax.config import schema
from elva_jax.config.serialize import config_from_dict
from elva_jax.errors import ConvertError
from elva_jax.hf import elva, eva_clip, param_mapping, qwen2, siglip
from elva_jax.hf.param_mapping import Source, Table
from elva_jax.hf.safetensors_io import CONFIGS, Store, is_hub_name, open_store, read_json
from elva_jax.models.build import parameter_shapes
from elva_jax.utils.quiet import quiet_libraries
from elva_jax.utils.trees import flatten_paths, unflatten_paths

STAGE = "converted"  # the stage that holds weights from elsewhere
BAND = 64  # rows of a matrix that are transposed at once
Index = tuple[slice, ...]
Place = Callable[[ConfigDict], Mapping[str, Any]]


class Loaded(NamedTuple):
    """Parameters of some source."""

    params: dict[str, jax.Array]  # by '/'-joined path, those that were asked for and are there
    left: tuple[str, ...]  # what the source has beyond them
    origin: str  # what it is, for messages


def is_hf_source(path: str | Path) -> bool:
    """Whether a path means a Hugging Face folder or a hub name, and not a run or a converted checkpoint."""
    folder = Path(path)
    if not folder.is_dir():
        return is_hub_name(str(path))
    if any(folder.glob("*.safetensors")):
        return True
    configs = [read_json(folder / name) for name in CONFIGS if (folder / name).is_file()]
    return any("model_type" in config or "vision_cfg" in config for config in configs)


def load_params(
    source: str | Path,
    targets: Mapping[str, jax.ShapeDtypeStruct],
    config: ConfigDict,
    *,
    kind: str = "elva",
    allow_pickle: bool = False,
) -> Loaded:
    """Reads parameters leaf by leaf into the shardings and dtypes of `targets`, without a second copy in host memory.

    Args:
      source: a Hugging Face folder, a hub name, a converted checkpoint, or a run.
      targets: shapes, dtypes and shardings by '/'-joined path, such as elva/decoder/norm/scale or vision/patch_bias.
      config: the run's configuration, which a Hugging Face folder must agree with.
      kind: elva | teacher, which stages of a run are meant.
      allow_pickle: whether .bin and .pt files may be read.

    Raises:
      ConvertError: a folder that is damaged or does not fit the configuration.
      CheckpointError: a run without a fitting checkpoint, or a damaged one.
    """
    if not is_hf_source(source):
        placed = {path: leaf.sharding for path, leaf in targets.items()}
        run = load_run(
            source,
            kind=kind,
            shardings=placed,
            dtypes={path: leaf.dtype for path, leaf in targets.items()},
        )
        saved = flatten_paths(run.params)
        common = {path: leaf for path, leaf in saved.items() if path in targets}
        return Loaded(
            common,
            tuple(sorted(saved.keys() - targets.keys())),
            f"stage {run.stage}, step {run.step}",
        )
    return load_store(open_store(source, allow_pickle=allow_pickle), targets, config, kind=kind)


def load_store(
    store: Store,
    targets: Mapping[str, jax.ShapeDtypeStruct],
    config: ConfigDict,
    *,
    kind: str = "elva",
) -> Loaded:
    """`load_params` of a folder that is open already."""
    table, prefix = _table(store, config, kind)
    wanted = {
        path.removeprefix(prefix): leaf for path, leaf in targets.items() if path.startswith(prefix)
    }
    shapes = {name: store.shape(name) for name in store.names()}
    dtypes = {name: store.dtype(name) for name in store.names()}
    sources = param_mapping.plan(
        table, shapes, dtypes, {path: leaf.shape for path, leaf in wanted.items()}, str(store.path)
    )
    # Each is in memory twice while it goes to its device: the largest while there is least beside it.
    largest_first = sorted(sources, key=lambda path: math.prod(wanted[path].shape), reverse=True)
    # Waiting for each keeps the copies on the host from piling up.
    params = {
        prefix + path: jax.block_until_ready(_read(store, table, sources[path], wanted[path]))
        for path in largest_first
    }
    return Loaded(params, (), describe(store.config))


def describe(config: Mapping[str, Any]) -> str:
    """What kind of model a folder's configuration is of."""
    return "EVA-CLIP" if eva_clip.is_eva_clip(config) else f"model_type {config.get('model_type')}"


def read_config(config: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """The group of our configuration (model | teacher) that a folder's configuration is about, and its values.

    Raises:
      ConvertError: a kind of model that cannot be read.
    """
    kind = config.get("model_type")
    if eva_clip.is_eva_clip(config):
        return "teacher", eva_clip.read_config(config, where)
    if kind in qwen2.MODEL_TYPES:
        return "model", qwen2.read_config(config, where)
    if kind == elva.MODEL_TYPE:
        return "model", elva.from_hf_config(config).to_dict()
    if kind in siglip.MODEL_TYPES or kind == "siglip2":
        return "teacher", siglip.read_config(config, where)
    known = ", ".join((*qwen2.MODEL_TYPES, elva.MODEL_TYPE, *siglip.MODEL_TYPES))
    raise ConvertError(
        f"{where}: its config.json has model_type {kind!r}; one of {known}, or the vision_cfg of an EVA-CLIP, can be read"
    )


@quiet_libraries()
def open_run_or_folder(path: str | Path, place: Place = lambda config: {}) -> Run:
    """A run, a converted checkpoint or an ELVA's Hugging Face folder, for inference: in float32 whatever it was saved in.

    Args:
      path: of any of them.
      place: shardings by '/'-joined parameter path, of a run's configuration; parameters without one go to the first device.

    Raises:
      CheckpointError: nothing to load there.
      ConvertError: a folder of another kind, or a damaged one.
    """
    if is_hf_source(path):
        return load_folder(path, place)
    run = open_run(path)
    return run.load_float32(place(run.config))


def load_folder(path: str | Path, place: Place = lambda config: {}) -> Run:
    """An ELVA's Hugging Face folder as `load_run` gives a run, in float32; `place` as in `open_run_or_folder`.

    Raises:
      ConvertError: a folder of another kind, or a damaged one.
    """
    store = open_store(path)
    if store.config.get("model_type") != elva.MODEL_TYPE:
        raise ConvertError(
            f"{path}: is of {describe(store.config)}, not an ELVA; only an ELVA answers questions about videos"
        )
    config, stage, step = folder_config(store)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes, shardings = parameter_shapes(config, "elva"), place(config)
    targets = {
        name: jax.ShapeDtypeStruct(shape, np.float32, sharding=shardings.get(name, device))
        for name, shape in shapes.items()
    }
    return Run(
        config=config,
        stage=stage,
        params=unflatten_paths(load_store(store, targets, config).params),
        tokenizer_dir=store.path,
        step=step,
    )


def folder_config(store: Store) -> tuple[ConfigDict, str, int]:
    """Configuration, stage and step of an ELVA's folder: of the run it was exported from, or the defaults around its model."""
    if (store.path / elva.RUN_FILE).is_file():
        run = read_json(store.path / elva.RUN_FILE)
        return config_from_dict(run["config"]), run["stage"], run["step"]
    config = schema.base()
    config.model.update(elva.from_hf_config(store.config))
    config.stages[STAGE] = schema.stage()
    config.stages[STAGE].merging = bool(store.config.get("merging"))
    config.stages[STAGE].data.update(elva.data_settings(store.path))
    config.curriculum = (STAGE,)
    return config, STAGE, 0


def _table(store: Store, config: ConfigDict, kind: str) -> tuple[Table, str]:
    """The names of a folder's tensors, and what our paths begin with before those of the table."""
    group, _ = read_config(store.config, str(store.path))
    if (group == "teacher") != (kind == "teacher"):
        wants = "a vision tower" if kind == "teacher" else "an ELVA, a Qwen2 or a Llama"
        raise ConvertError(
            f"{store.path}: is of {describe(store.config)}, but {wants} is wanted here; see init_from and teacher.init_from"
        )
    if group == "teacher":
        module = eva_clip if eva_clip.is_eva_clip(store.config) else siglip
        return module.table(store.config, config.teacher, store), ""
    module = elva if store.config["model_type"] == elva.MODEL_TYPE else qwen2
    return module.table(store.config, config.model, store), "elva/"


def _read(store: Store, table: Table, source: Source, target: jax.ShapeDtypeStruct) -> jax.Array:
    """One parameter, every device's piece read from the maps by itself."""
    stacked = "{}" in source.rule.theirs

    def piece(index: Index) -> np.ndarray:
        at = tuple(
            slice(*part.indices(size)) for part, size in zip(index, target.shape, strict=True)
        )
        out = np.empty([part.stop - part.start for part in at], target.dtype)
        if not stacked:
            _fill(out, store, table, source, source.names[0], at, target.shape)
        else:
            for row, layer in enumerate(range(at[0].start, at[0].stop)):
                _fill(out[row], store, table, source, source.names[layer], at[1:], target.shape[1:])
        return out

    return jax.make_array_from_callback(target.shape, target.sharding, piece)


def _copy(out: np.ndarray, value: np.ndarray) -> None:
    """Assigns; a transposed matrix in bands of its rows on disk, which is many times as fast as NumPy's order."""
    if value.ndim == 2 and value.strides[0] < value.strides[1]:
        for i in range(0, value.shape[1], BAND):
            out[:, i : i + BAND] = value[:, i : i + BAND]
    else:
        out[...] = value


def _fill(
    out: np.ndarray,
    store: Store,
    table: Table,
    source: Source,
    name: str | None,
    at: Index,
    shape: tuple[int, ...],
) -> None:
    """Writes a slice of a tensor of `shape` (ours, of one layer) to `out`, in its dtype."""
    if name is None:
        out[...] = 0
        return
    value = table.to_ours(source.rule, store.read(name))
    have = tuple(
        slice(part.start, min(part.stop, size)) for part, size in zip(at, value.shape, strict=True)
    )
    inside = tuple(slice(0, max(part.stop - part.start, 0)) for part in have)
    _copy(out[inside], value[have])
    for axis, (theirs, ours) in enumerate(zip(value.shape, shape, strict=True)):
        if theirs < ours:
            # Rows of tokens that the checkpoint has never seen: the mean of the others makes them neither likely nor far away.
            grown = tuple(
                slice(part.stop, None) if k == axis else slice(None)
                for k, part in enumerate(inside)
            )
            mean = value.mean(axis, keepdims=True, dtype=np.float32)
            out[grown] = mean[
                tuple(slice(None) if k == axis else part for k, part in enumerate(at))
            ]
    store.refuse_non_finite(name, out)
    store.release(name)
