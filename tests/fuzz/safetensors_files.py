"""Fuzzes safetensors: headers, index files and checksums, through the doors that import weights.

`python tests/fuzz/safetensors_files.py --findings DIR`. An input is JSON of the files of a folder;
text that is no such JSON is the content of a single file, header length included.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import common
import numpy as np

from elva_jax.config.serialize import freeze
from elva_jax.hf.load import is_hf_source, load_store, make_targets, read_config
from elva_jax.hf.tensor_store import open_store
from elva_jax.models.build import parameter_shapes
from elva_jax.testing.models import tiny_config

HEADER = {
    "__metadata__": {"format": "pt"},
    "model.norm.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
    "model.embed_tokens.weight": {"dtype": "BF16", "shape": [2, 4], "data_offsets": [16, 32]},
    "model.layers.0.mlp.up_proj.weight": {
        "dtype": "F16",
        "shape": [2, 2],
        "data_offsets": [32, 40],
    },
}
INDEX = {
    "metadata": {"total_size": 40},
    "weight_map": {name: "a.safetensors" for name in HEADER if name != "__metadata__"},
}
HF = {
    "model_type": "qwen2",
    "vocab_size": 2,
    "hidden_size": 4,
    "intermediate_size": 2,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 128,
}
FILES: dict[str, Any] = {"a.safetensors": [HEADER, 0, 40]}
FOLDERS = [
    {"model.safetensors": [HEADER, 0, 40]},
    FILES | {"model.safetensors.index.json": INDEX},
    FILES | {"config.json": HF},
    {"model.safetensors": [HEADER, 0, 40], "config.json": HF},
    FILES | {"b.safetensors": [{}, 0, 0], "config.json": HF, "model.safetensors.index.json": INDEX},
    FILES | {"checksums.json": {"a.safetensors": "0" * 64}},
    FILES | {"checksums.json": {"a.safetensors": {"sha256": "0" * 64, "crc32": [0]}}},
]
CONFIG = freeze(tiny_config())
TARGETS = make_targets(parameter_shapes(CONFIG, "elva"), np.dtype(np.float32))
SEEDS = [json.dumps(folder).encode() for folder in FOLDERS]
SEEDS += [
    (2).to_bytes(8, "little") + b"{}",
    b"",
    b"\xff" * 8,
    (2**40).to_bytes(8, "little") + b"{}",
]


def target(data: bytes, folder: Path) -> None:
    """Opens a folder, reads every tensor, and loads the weights into a model."""
    for name, content in _files(data).items():
        (folder / name).write_bytes(content)
    is_hf_source(folder)
    store = open_store(folder)
    for name in store.names():
        store.refuse_non_finite(name, store.read(name))
        store.release(name)
    if store.config:
        read_config(store.config, str(folder))
        load_store(store, TARGETS, CONFIG, subtree="elva")


def _files(data: bytes) -> dict[str, bytes]:
    """The files of an input."""
    try:
        held = json.loads(data)
    except (ValueError, RecursionError):
        held = None
    if not isinstance(held, dict):
        return {"model.safetensors": data}
    out = {}
    for name, content in held.items():
        if not (name.isprintable() and 0 < len(name.encode()) < 100) or "/" in name:
            continue  # no name of a file
        if name.endswith(".safetensors") and isinstance(content, list) and len(content) == 3:
            out[name] = _safetensors(*content)
        else:
            out[name] = json.dumps(content).encode()
    return {name: content for name, content in out.items() if name.strip(". ")}


def _safetensors(header: Any, more: Any, size: Any) -> bytes:
    """A file with a header of any length that it claims, and `size` bytes of data."""
    text = json.dumps(header).encode()
    claimed = len(text) + (more if isinstance(more, int) else 0)
    count = size if isinstance(size, int) and 0 <= size < 2**16 else 40
    return (claimed % 2**64).to_bytes(8, "little") + text + bytes(count)


def grow(rng: random.Random) -> bytes:
    """A folder with something wrong in a header, an index or a config.json."""
    held = common.spoil(rng, rng.choice(FOLDERS), rng.choice((0.01, 0.05, 0.2)))
    return common.dump(rng, held)


if __name__ == "__main__":
    common.main(target, grow, SEEDS)
