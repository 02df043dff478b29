"""Accelerators that a plan may name, from their data sheets (dense products, without sparsity)."""

from __future__ import annotations

import dataclasses
from typing import Any

GIB = 2**30
USABLE = 0.92  # share of memory for arrays; the rest: CUDA, NCCL, cuDNN's workspace, fragments
EFFICIENCY = 0.6  # share of the peak that large matrix products reach
NETWORK_EFFICIENCY = 0.8  # share of a link's speed that large collectives reach


@dataclasses.dataclass(frozen=True, kw_only=True)
class Device:
    """One accelerator and its place in a host."""

    name: str
    memory: float  # GiB
    half: float  # FLOP/s of bfloat16 products that sum in float32
    single: float  # FLOP/s of float32 products as JAX runs them by default (TF32)
    bandwidth: float  # bytes/s of its own memory
    link: float  # bytes/s to and from the other devices of its host, in each direction
    network: float  # bytes/s to and from other hosts, in each direction and per device
    per_host: int = 8  # devices of a host


_A100: Any = {"half": 312e12, "single": 156e12, "link": 300e9, "network": 25e9}
_HOPPER: Any = {"half": 989e12, "single": 494e12, "link": 450e9, "network": 50e9}
_CARD: Any = {"link": 25e9, "network": 1.25e9}  # without NVLink

DEVICES = {
    "a100-80g": Device(name="A100-SXM-80GB", memory=80, bandwidth=2.039e12, **_A100),
    "a100-40g": Device(name="A100-SXM-40GB", memory=40, bandwidth=1.555e12, **_A100),
    "h100": Device(name="H100-SXM-80GB", memory=80, bandwidth=3.35e12, **_HOPPER),
    "h200": Device(name="H200-SXM-141GB", memory=131, bandwidth=4.8e12, **_HOPPER),
    "rtx4090": Device(
        name="RTX 4090, 24 GB",
        memory=23.99,
        half=165e12,
        single=82.6e12,
        bandwidth=1.008e12,
        **_CARD,
    ),
    "a10-24g": Device(
        name="A10, 24 GB", memory=22.5, half=125e12, single=62.5e12, bandwidth=0.6e12, **_CARD
    ),
}
