"""The measurements that `elva bench load` runs in separate processes."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from elva_jax.checkpoints.restore import ITEMS, open_run
from elva_jax.checkpoints.save import save_weights
from elva_jax.config import schema
from elva_jax.config.schema import Config, ModelConfig
from elva_jax.config.serialize import config_to_dict, freeze
from elva_jax.data.tokenizer import build
from elva_jax.errors import ConfigError
from elva_jax.hf.export import export
from elva_jax.hf.load import is_hf_source
from elva_jax.inference.load import load
from elva_jax.inference.params import Weights, parameter_count
from elva_jax.inference.quantization import Scheme, weights_bytes
from elva_jax.models.build import parameter_shapes
from elva_jax.tools.analysis import paper
from elva_jax.tools.bench.memory import peak_bytes
from elva_jax.utils.trees import unflatten_paths

STAGE = "video"
TINY = ModelConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    patch_width=32,
)
PRESETS = {"tiny": TINY, "1.5b": paper.QWEN2_1_5B, "7b": paper.QWEN2_7B}
BLOCK = 2**22  # bytes that are read at a time
T = TypeVar("T")


def apart(function: Callable[..., T], *args: Any) -> T:
    """Calls a function of a module in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def write_random(model: ModelConfig, folder: Path) -> dict[str, Path]:
    """Writes a model with random weights; the paths of its sources by name."""
    config = _config(dataclasses.replace(model, dtype="bfloat16"))
    rng = np.random.default_rng(0)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        return np.float32(0.02) * rng.standard_normal(shape, np.float32)

    params = {path: draw(shape) for path, shape in parameter_shapes(config, "elva").items()}
    run = folder / "run"
    save_weights(run / STAGE, unflatten_paths(params), config, STAGE)
    del params
    (run / "config.json").write_text(json.dumps(config_to_dict(config)))
    build(["What moves?"], run / "tokenizer", vocab_size=300)
    out = folder / "folder"
    export(run, out, dtype="bfloat16")
    return {"run, float32": run, "folder, bfloat16": out}


def _config(model: ModelConfig) -> Config:
    config = schema.base()
    config.name, config.curriculum = "bench", (STAGE,)
    config.stages[STAGE] = schema.stage()
    return dataclasses.replace(freeze(config), model=model)


def files_of(path: Path) -> list[Path]:
    """The files that loading reads: weights and metadata, without the optimizer's.

    Raises:
      ConfigError: the path is no folder.
    """
    if not path.is_dir():
        raise ConfigError(f"--checkpoint {path}: is no folder")
    if is_hf_source(path):
        return sorted(file for file in path.iterdir() if file.is_file())
    step = open_run(path).path
    return sorted(file for item in ITEMS for file in (step / item).rglob("*") if file.is_file())


def forget(files: list[Path]) -> None:
    """Advises the system to drop files from its cache, in Linux; what is not on disk yet is not."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def read_seconds(path: Path) -> float:
    """Seconds of reading the files from beginning to end, one after the other."""
    files, block = files_of(path), bytearray(BLOCK)
    forget(files)
    start = time.perf_counter()
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(block):
                pass
    return time.perf_counter() - start


def measure(
    path: Path, dtype: Literal["float32", "bfloat16"], weights: Scheme | None
) -> dict[str, Any]:
    """Loads a model once."""
    files = files_of(path)
    forget(files)
    device = jax.devices()[0]  # the backend's own memory is not the model's
    clocks: list[float] = []

    def timed() -> Any:
        start, cpu = time.perf_counter(), time.process_time()
        model = load(path, dtype=dtype, weights=weights)
        arrays = jax.block_until_ready(model.engine.weights)
        clocks.extend((time.perf_counter() - start, time.process_time() - cpu))
        held.append(arrays)

    held: list[Any] = []
    peak = peak_bytes(timed)
    return {
        "device": device.device_kind,
        "file_bytes": sum(file.stat().st_size for file in files),
        "weight_bytes": _size(held[0], dtype, weights),
        "peak_bytes": peak,
        "seconds": clocks[0],
        "cpu_seconds": clocks[1],
    }


def _size(held: Weights, dtype: str, scheme: Scheme | None) -> int:
    """Bytes of the weights, those in float32 counted in the compute type as well."""
    if scheme is not None:
        return weights_bytes(held)
    return parameter_count(held) * jnp.dtype(dtype).itemsize
