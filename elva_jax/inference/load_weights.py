"""Weights straight from a source to the devices, tensor by tensor, in the types of inference.

Threads read the next tensors while one is placed, so memory holds the weights and a few tensors
more, and neither a float32 copy nor stacked layers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from elva_jax.checkpoints.source import ParamSource, needed, place
from elva_jax.config.schema import ModelConfig
from elva_jax.errors import CheckpointError
from elva_jax.inference.params import Weights, mesh_shardings
from elva_jax.utils.trees import flatten_paths, unflatten_paths

Keep = Callable[[str, jax.Array], Any]
See = Callable[[str, jax.Array], None]
ELVA, LAYERS = "elva/", "decoder/layers/"  # beginnings of paths: in a source, and in `Elva`
AT_ONCE = 2**27  # bytes of tensors that are read at the same time, or
THREADS = 8
SHARE = 1 / 48  # of the source's, if that is more
TOGETHER = 2**22  # bytes; smaller stacks are read as a whole


def compute_type(config: ModelConfig) -> Keep:
    """The `Keep` of plain weights: all in the types that `kept_dtype` says."""
    return lambda path, array: array.astype(kept_dtype(config, path))


def watched(see: See, keep: Keep) -> Keep:
    """A `Keep` that shows each tensor to `see` before."""

    def both(path: str, array: jax.Array) -> Any:
        see(path, array)
        return keep(path, array)

    return both


def kept_dtype(config: ModelConfig, path: str) -> np.dtype:
    """The type in which inference keeps a parameter of `Elva`.

    What the model computes in float32 (patch embedding, norms) stays float32.
    """
    whole = path.startswith("patch_embed/") or path.endswith("/scale")
    return np.dtype(np.float32) if whole else jnp.dtype(config.dtype)


def stacked_path(path: str) -> tuple[str, int | None]:
    """The path of the stacked parameter that a tensor is a layer of, and the layer's number."""
    if not path.startswith(LAYERS):
        return path, None
    layer, _, rest = path.removeprefix(LAYERS).partition("/")
    return f"{LAYERS}{rest}", int(layer)


def load_weights(
    source: ParamSource, config: ModelConfig, mesh: Mesh | None = None, keep: Keep | None = None
) -> Weights:
    """Reads the weights of an ELVA.

    Args:
      source: an open run or folder.
      config: its model; `dtype` is the compute type.
      mesh: devices over which they are split; None: the first device.
      keep: says what is kept of each tensor, as a function of its path in `Elva`, with the number
        of the layer after `layers` (`decoder/layers/3/q_proj/kernel`), and the tensor in the type
        of the source, on its devices. It may return any pytree of arrays. It is called in order of
        the stacked parameters' paths, then of layers, by one thread. None: `compute_type`.

    Raises:
      CheckpointError, ConvertError: a source that is damaged or lacks parameters.
    """
    names = sorted(name for name in source.shapes if name.startswith(ELVA))
    shardings = _shardings(config, mesh, names)
    types = {name: kept_dtype(config, name.removeprefix(ELVA)) for name in names}
    jobs = [
        _Job(source, name, rows, shardings[name], None if keep else types[name])
        for name in names
        for rows in _rows(source, name)
    ]
    leaves = {path: keep(path, array) if keep else array for path, array in _in_order(jobs)}
    return _assemble(leaves, config.num_layers, source)


class _Job:
    """The reading of one parameter, or of some layers of it."""

    def __init__(
        self,
        source: ParamSource,
        name: str,
        rows: range | None,
        sharding: Sharding,
        dtype: np.dtype | None,
    ):
        self.source, self.name, self.rows = source, name, rows
        self.sharding, self.dtype = sharding, dtype

    @property
    def nbytes(self) -> int:
        """Bytes in the source's type."""
        leaf = self.source.shapes[self.name]
        size = leaf.size * leaf.dtype.itemsize
        return size if self.rows is None else size // leaf.shape[0] * len(self.rows)

    def __call__(self) -> list[tuple[str, jax.Array]]:
        """Path and array of each tensor, on its devices."""
        path, shape = self.name.removeprefix(ELVA), self.source.shapes[self.name].shape
        paths = [path]
        if self.rows is not None:
            shape, rest = shape[1:], path.removeprefix(LAYERS)
            paths = [f"{LAYERS}{row}/{rest}" for row in self.rows]
        index = needed(shape, self.sharding)
        with self.source.rows(self.name, self.rows, index, self.dtype) as parts:
            arrays = [place(part, shape, index, self.sharding) for part in parts]
        return list(zip(paths, arrays, strict=True))


def _rows(source: ParamSource, name: str) -> list[range | None]:
    """The rows of a parameter that are read together."""
    if not name.startswith(ELVA + LAYERS):
        return [None]
    leaf = source.shapes[name]
    layers, size = leaf.shape[0], leaf.size * leaf.dtype.itemsize
    step = layers if size <= TOGETHER else source.rows_at_once(name)
    return [range(first, min(first + step, layers)) for first in range(0, layers, step)]


def _in_order(jobs: Sequence[_Job]) -> Iterator[tuple[str, jax.Array]]:
    """The results of the jobs, of which a few run ahead."""
    limit = max(AT_ONCE, int(SHARE * sum(job.nbytes for job in jobs)))
    pending: deque[tuple[int, Future[list[tuple[str, jax.Array]]]]] = deque()
    with ThreadPoolExecutor(THREADS) as pool:
        for job in jobs:
            while pending and sum(size for size, _ in pending) + job.nbytes > limit:
                yield from pending.popleft()[1].result()
            pending.append((job.nbytes, pool.submit(job)))
        while pending:
            yield from pending.popleft()[1].result()


def _shardings(config: ModelConfig, mesh: Mesh | None, names: list[str]) -> dict[str, Sharding]:
    """The sharding of every parameter, or of a layer of it, by its name in the source."""
    if mesh is None:
        return dict.fromkeys(names, SingleDeviceSharding(jax.local_devices()[0]))
    found: dict[str, NamedSharding] = flatten_paths({"elva": mesh_shardings(config, mesh)})
    return {
        name: NamedSharding(leaf.mesh, PartitionSpec(*leaf.spec[1:]))
        if name.startswith(ELVA + LAYERS)
        else leaf
        for name, leaf in found.items()
    }


def _assemble(leaves: dict[str, Any], num_layers: int, source: ParamSource) -> Weights:
    tree = unflatten_paths(leaves)
    try:
        decoder = tree["decoder"]
        return Weights(
            visual=tree["patch_embed"],
            embed_tokens=decoder["embed_tokens"],
            norm=decoder["norm"],
            lm_head=decoder.get("lm_head"),
            layers=tuple(decoder["layers"][str(layer)] for layer in range(num_layers)),
        )
    except KeyError as error:
        raise CheckpointError(
            f"{source.tokenizer_dir.parent}: its weights lack {error.args[0]}"
        ) from None
