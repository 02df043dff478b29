"""`packed_attention`, and the choice of the implementation that computes it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from elva_jax.errors import ConfigError
from elva_jax.ops.attention import cudnn
from elva_jax.ops.attention.blocked import LONG, blocked_attention
from elva_jax.ops.attention.context_parallel import context_parallel_attention
from elva_jax.ops.attention.stand_in import stand_in
from elva_jax.ops.attention.tiled import tiled_attention
from elva_jax.parallel.sharding import mesh_axes
from elva_jax.utils.arrays import AnyArray

IMPLEMENTATIONS = ("auto", "xla", "cudnn")
UNSPLIT = PartitionSpec(None, None, None)  # rows, sequence and heads


def packed_attention(
    q: Float[AnyArray, "B S H Dh"],
    k: Float[AnyArray, "B S K Dh"],
    v: Float[AnyArray, "B S K Dh"],
    segment: Int[AnyArray, "B S"],
    turn: Int[AnyArray, "B S"] | None = None,
    *,
    single: bool = False,
    implementation: str = "auto",
    split: PartitionSpec = UNSPLIT,
) -> Float[Array, "B S H Dh"]:
    """Causal self-attention within packed examples.

    Padding (segment 0) attends to padding only, which keeps its rows finite, and no other token
    attends to it.

    Args:
      q: queries; H is a multiple of K, and query head h reads key head h // (H / K).
      k: keys.
      v: values.
      segment: which packed example each token belongs to.
      turn: which of its example's independent turns; every turn attends to turn 0 and to itself.
        None: all tokens are of turn 0.
      single: promises that every row is one example without turns, followed by its padding, so
        that only causality has to be masked. Padding then attends to the example, and its output
        is meaningless. For inference: long sequences have no gradient.
      implementation: xla works block by block on any device; cudnn is the fused kernel (GPU, half
        precision, head width up to 128); auto takes cudnn where it can run.
      split: how the current mesh splits rows, sequence and heads. Where it splits the sequence,
        which only xla supports, queries stay on their devices and meet keys and values that are
        gathered whole.

    Returns:
      The attended values in the type of v; the softmax is computed in float32.

    Raises:
      ConfigError: cudnn was asked for where it cannot run, or the implementation is unknown.
    """
    length, sizes = q.shape[1], jax.sharding.get_abstract_mesh().shape
    parts = math.prod(sizes[name] for name in mesh_axes(split[1]))
    replacement = stand_in()
    backend = "gpu" if replacement else ""
    if choose_implementation(q.shape[-1], q.dtype, implementation, parts, backend).name == "cudnn":
        if replacement:
            return replacement(q, k, v)
        if single:
            fused = partial(cudnn.fused_attention, turn=None, single=True)
            return _on_each_device(fused, split)(q, k, v, segment)
        return cudnn.fused_attention(q, k, v, segment, turn, single=False)
    if parts > 1 and length % parts == 0:
        return context_parallel_attention(q, k, v, segment, turn, split)
    if single and length > LONG:
        return _on_each_device(lambda q, k, v, _: tiled_attention(q, k, v), split)(q, k, v, segment)
    return blocked_attention(q, k, v, segment, turn, single=single)


def _on_each_device(
    attend: Callable[..., jax.Array], split: PartitionSpec
) -> Callable[..., jax.Array]:
    """`attend` of q, k, v and segment, by each device of the mesh for its own rows and heads.

    The partitioner cannot split a loop over rows and heads: every device would compute all of them.
    And it may split the heads of q but not of k, which cuDNN's kernel refuses.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return attend
    specs = (split, split, split, PartitionSpec(*split[:2]))
    return jax.shard_map(attend, in_specs=specs, out_specs=split, check_vma=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Implementation:
    """The implementation that runs, and why."""

    name: str  # xla | cudnn
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


def choose_implementation(
    head_dim: int, dtype: DTypeLike, implementation: str = "auto", parts: int = 1, backend: str = ""
) -> Implementation:
    """The choice of `packed_attention`.

    Args:
      head_dim: width of a head.
      dtype: of queries, keys and values.
      implementation: as in `packed_attention`.
      parts: into which the mesh splits sequences.
      backend: where it will run, such as gpu; by default JAX's own.

    Raises:
      ConfigError: cudnn was asked for where it cannot run, or the implementation is unknown.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ConfigError(
            f"model.attention: {implementation!r} is unknown; "
            f"use one of {', '.join(IMPLEMENTATIONS)}"
        )
    obstacle = cudnn.obstacle(head_dim, jnp.dtype(dtype), backend) or (
        f"needs whole sequences, which mesh.context = {parts} splits" if parts > 1 else ""
    )
    if implementation == "cudnn" and obstacle:
        raise ConfigError(f"model.attention: cudnn {obstacle}; use auto or xla")
    if implementation == "xla":
        return Implementation(name="xla", reason="as model.attention says")
    if obstacle:
        return Implementation(name="xla", reason=f"cudnn {obstacle}")
    return Implementation(name="cudnn", reason="a GPU in half precision")
