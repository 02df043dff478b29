"""Reading and writing the items of a saved step with Orbax; see `checkpoints.format`.

Apart from that module because inference, which does not need it, starts faster without Orbax.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax
import jax
import optax
import orbax.checkpoint as ocp

from elva_jax.checkpoints.checksums import write_checksums
from elva_jax.checkpoints.format import ITEMS
from elva_jax.config.schema import Config
from elva_jax.config.serialize import config_to_dict
from elva_jax.utils.trees import key_path
from elva_jax.version import __version__

LAYERS = "/layers/"  # in the path of a parameter that stacks layers
CHUNK_BYTES = 2**25  # of an array; smaller arrays are one chunk


class StepHandler(ocp.CompositeCheckpointHandler):
    """Writes the checksums of a step's items before the step gets its name."""

    def finalize(self, directory: Any) -> None:
        """Called by the first process alone, after all processes have written."""
        super().finalize(directory)
        write_checksums(Path(directory))


@ocp.args.register_with_handler(StepHandler, for_save=True, for_restore=True)
class StepArgs(ocp.args.Composite):
    """Arguments for `StepHandler`: Orbax finds a handler by the type of its arguments."""


def open_writer() -> ocp.AsyncCheckpointer:
    """Writes whole steps in the background."""
    return ocp.AsyncCheckpointer(StepHandler(**_handlers(ITEMS) | {"params": plain_arrays()}))


def plain_arrays(**options: Any) -> ocp.PyTreeCheckpointHandler:
    """Writes arrays as they are, with `options` of Orbax's handler.

    Compression would save 5 to 8 % of float32 weights; decoding takes longer than reading that.
    """
    return ocp.PyTreeCheckpointHandler(use_compression=False, **options)


def open_reader(items: Sequence[str] = ITEMS) -> ocp.Checkpointer:
    """Reads these items of a step, and does not touch the others."""
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler(**_handlers(items)))


def _handlers(items: Sequence[str]) -> dict[str, Any]:
    kinds = {"params": ocp.StandardCheckpointHandler, "optimizer": ocp.StandardCheckpointHandler}
    return {item: kinds.get(item, ocp.JsonCheckpointHandler)() for item in items}


def save_args(params: Any) -> Any:
    """How the parameters are cut into chunks, each of which is read and decoded on its own.

    A chunk is part of one layer, so that inference can read a stack of layers one by one.
    """

    def cut(path: tuple[Any, ...], leaf: Any) -> ocp.SaveArgs:
        if leaf.nbytes <= CHUNK_BYTES:
            return ocp.SaveArgs()
        stacked = LAYERS in f"/{key_path(path)}"
        return ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES, shard_axes=(0,) if stacked else ())

    return jax.tree_util.tree_map_with_path(cut, params)


def step_metadata(config: Config, stage: str, step: int) -> dict[str, Any]:
    """The item `meta` of a step."""
    modules = {"jax": jax, "flax": flax, "optax": optax, "orbax": ocp}
    versions = {name: module.__version__ for name, module in modules.items()}
    return {
        "config": config_to_dict(config),
        "stage": stage,
        "step": step,
        "processes": jax.process_count(),
        "versions": {"elva_jax": __version__, **versions},
    }
