"""Parameters from a source, compared with those that a model wants."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import jax

from elva_jax.checkpoints.restore import Loaded
from elva_jax.config.schema import Config
from elva_jax.errors import CheckpointError

VISION = "vision"  # the subtree of a teacher that others use


class LoadParams(Protocol):
    """Reads those of `targets` that a source has, as `hf.load.load_params` does from any source."""

    def __call__(
        self,
        source: str | Path,
        targets: Mapping[str, jax.ShapeDtypeStruct],
        config: Config,
        *,
        subtree: str,
    ) -> Loaded:
        """Reads parameters by path: of an ELVA (`elva`), a vision tower or a text tower."""


def check_shapes(
    params: Mapping[str, Any], targets: Mapping[str, Any], source: str | Path, owner: str
) -> None:
    """Refuses parameters of another shape than that of their path in `targets`.

    Raises:
      CheckpointError: naming the source, the path, and the `owner` of the targets.
    """
    for path, there in params.items():
        here = targets[path]
        if here.shape != there.shape:
            raise CheckpointError(
                f"{source}: {path} is {there.dtype}{list(there.shape)},"
                f" {owner} has {here.dtype}{list(here.shape)}"
            )


def check_complete(
    params: Mapping[str, Any], targets: Mapping[str, Any], source: str | Path, owner: str
) -> None:
    """Refuses parameters of another shape, and a source that lacks one of `targets`.

    Raises:
      CheckpointError: as in `check_shapes`.
    """
    check_shapes(params, targets, source, owner)
    if missing := sorted(targets.keys() - params.keys()):
        raise CheckpointError(f"{source}: lacks {', '.join(missing)} of {owner}")


def load_tower(
    load: LoadParams,
    source: str | Path,
    config: Config,
    targets: Mapping[str, jax.ShapeDtypeStruct],
    at: str,
    owner: str,
) -> dict[str, jax.Array]:
    """A vision tower that is a part of a model, from a source of its own.

    Args:
      load: reads it.
      source: where its weights are.
      config: the run's, with the tower in its group `teacher`.
      targets: shapes, dtypes and shardings of the model by path.
      at: how the paths of the tower begin there, such as "elva/patch_embed/tower_siglip/".
      owner: the tower, in errors.

    Returns:
      its parameters by path in the model.

    Raises:
      CheckpointError: one is missing, or has another shape.
      ConvertError: a Hugging Face folder that is damaged or does not fit.
    """
    theirs = f"{VISION}/"
    wanted = {
        theirs + path.removeprefix(at): leaf
        for path, leaf in targets.items()
        if path.startswith(at)
    }
    params = load(source, wanted, config, subtree=VISION).params
    check_complete(params, wanted, source, owner)
    return {at + path.removeprefix(theirs): leaf for path, leaf in params.items()}
