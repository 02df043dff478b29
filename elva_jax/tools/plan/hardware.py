"""What the accelerators that a plan may name can do, from their makers' data sheets (dense, without sparsity)."""

from __future__ import annotations

from typing import NamedTuple

GIB = 2**30


class Device(NamedTuple):
    """One accelerator and its place in a host."""

    name: str
    memory: float  # GiB
    half: float  # FLOP/s of bfloat16 products that sum in float32
    single: float  # FLOP/s of float32 products as JAX runs them by default (TF32)
    bandwidth: float  # bytes/s of its own memory
    link: float  # bytes/s to and from the others of its host, each way
    network: float  # bytes/s to and from other hosts, each way and each device
    per_host: int  # devices that share a host


DEVICES = {
    "a100-80g": Device("A100-SXM-80GB", 80, 312e12, 156e12, 2.039e12, 300e9, 25e9, 8),
    "a100-40g": Device("A100-SXM-40GB", 40, 312e12, 156e12, 1.555e12, 300e9, 25e9, 8),
    "h100": Device("H100-SXM-80GB", 80, 989e12, 494e12, 3.35e12, 450e9, 50e9, 8),
    "h200": Device("H200-SXM-141GB", 131, 989e12, 494e12, 4.8e12, 450e9, 50e9, 8),
    "rtx4090": Device("RTX 4090, 24 GB", 23.99, 165e12, 82.6e12, 1.008e12, 25e9, 1.25e9, 8),
    "a10-24g": Device("A10, 24 GB", 22.5, 125e12, 62.5e12, 0.6e12, 25e9, 1.25e9, 8),
}
USABLE = 0.92  # share of the memory that arrays may take: the rest is for CUDA, NCCL's buffers, cuDNN's workspace and fragments
EFFICIENCY = 0.6  # share of the peak that large matrix products reach
NETWORK_EFFICIENCY = 0.8  # share of a link's speed that large collectives reach
