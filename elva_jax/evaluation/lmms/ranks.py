"""The devices of one rank of torchrun, each of which is a JAX process of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import jax

from elva_jax.errors import ConfigError
from elva_jax.parallel.launchers import share_of_gpus


def choose_devices(environ: Mapping[str, str], device_folder: Path = Path("/dev")) -> None:
    """Lets this rank see its share of the host's GPUs; before JAX is first used.

    The processes know nothing of one another: lmms-eval divides the questions, and no collective
    of JAX crosses them. JAX's own setting is used because torch may have started CUDA before, which
    then no longer reads CUDA_VISIBLE_DEVICES.

    Raises:
      ConfigError: the GPUs do not divide among the ranks of this host.
    """
    devices = rank_devices(environ, device_folder)
    if devices is not None:
        jax.config.update("jax_cuda_visible_devices", ",".join(map(str, devices)))


def rank_devices(
    environ: Mapping[str, str], device_folder: Path = Path("/dev")
) -> tuple[int, ...] | None:
    """The numbers of this rank's GPUs among those it sees; None: all, or there are none."""
    rank, count = environ.get("LOCAL_RANK", ""), environ.get("LOCAL_WORLD_SIZE", "")
    if not (rank.isascii() and rank.isdigit() and count.isascii() and count.isdigit()):
        return None
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        names = (entry.name for entry in device_folder.glob("nvidia*"))
        numbers = (name.removeprefix("nvidia") for name in names)
        visible = ",".join(sorted(n for n in numbers if re.fullmatch("[0-9]{1,4}", n)))
    try:
        return share_of_gpus(visible, int(rank), int(count))
    except ConfigError as error:
        raise ConfigError(
            f"{str(error).partition(';')[0]}; give torchrun another --nproc_per_node"
        ) from None
