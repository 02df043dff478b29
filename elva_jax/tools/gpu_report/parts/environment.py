"""The card, its driver, versions, and the speed of one large product and of one copy."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata

from elva_jax.tools.gpu_report.context import Context, per_call

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "torch", "numpy"),
    *("qwix", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12", "nvidia-cublas"),
    *("nvidia-cublas-cu12", "jax-cuda13-plugin", "jax-cuda12-plugin"),
)
QUERY = "name,driver_version,memory.total,power.limit,clocks.max.sm,clocks.max.memory"


def run(context: Context) -> None:
    """Reads versions, then measures the two ceilings."""
    import jax

    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    context.emit(
        {
            "case": "machine",
            "device": device.device_kind,
            "platform": device.platform,
            "devices": jax.device_count(),
            "bytes_limit": stats.get("bytes_limit"),
            "nvidia_smi": _nvidia_smi(),
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
            "versions": _versions(),
        }
    )
    _ceilings(context)


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _nvidia_smi() -> dict[str, str] | None:
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=15, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    values = done.stdout.splitlines()[0].split(", ") if done.stdout else []
    return dict(zip(QUERY.split(","), values, strict=False))


def _ceilings(context: Context) -> None:
    """Measures the best rates of products and copies, beside the data sheet's."""
    import jax
    import jax.numpy as jnp

    side, count = (256, 1 << 20) if context.dry else (8192, 1 << 31)
    with context.case("product of square matrices", side=side) as row:
        a, b = (jax.random.normal(jax.random.key(n), (side, side), jnp.bfloat16) for n in (0, 1))
        product = jax.jit(jnp.matmul)
        jax.block_until_ready(product(a, b))
        row["seconds"] = per_call(lambda: product(a, b))
        row["flops_per_second"] = 2 * side**3 / row["seconds"]["median"]
        row["share"] = context.share(2 * side**3, row["seconds"]["median"], context.card.flops)
    del a, b
    with context.case("sum of an array", bytes=2 * count) as row:
        x = jnp.ones((count,), jnp.bfloat16)
        add = jax.jit(lambda x: jnp.sum(x, dtype=jnp.float32))
        jax.block_until_ready(add(x))
        row["seconds"] = per_call(lambda: add(x))
        row["bytes_per_second"] = 2 * count / row["seconds"]["median"]
        bandwidth = context.card.bandwidth
        row["share"] = context.share(2 * count, row["seconds"]["median"], bandwidth)
