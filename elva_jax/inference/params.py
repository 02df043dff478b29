"""Parameters as inference reads them: one tree per decoder layer, matrices in the compute type.

Training stacks all layers in one subtree, which suits its scan. A program that slices such a stack
copies every weight it reads, and decoding a token reads little but weights; so inference unstacks
the layers once.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int, UInt8

from elva_jax.config.schema import ModelConfig
from elva_jax.models.elva import abstract_params, input_embeddings, visual_embed
from elva_jax.models.qwen2 import rms_norm, vocabulary_logits
from elva_jax.ops import quantized
from elva_jax.ops.quantized import Quantized
from elva_jax.parallel.mesh import with_all_axes
from elva_jax.parallel.sharding import MeshAxes, activation_rules, parameter_shardings
from elva_jax.utils.arrays import AnyArray
from elva_jax.video.layout import TokenLayout


class Weights(NamedTuple):
    """The parameters of `Elva` with its decoder layers unstacked."""

    visual: Any  # of the patch embedding
    embed_tokens: Float[Array, "V D"] | Quantized
    norm: Any  # of the final norm
    lm_head: Float[Array, "D V"] | Quantized | None  # None where the embedding table is the head
    layers: tuple[Any, ...]  # of each `DecoderLayer`


def unstack_layers(config: ModelConfig, params: Any) -> Weights:
    """Returns the weights of `Elva`'s parameters.

    What the model computes in float32 (patch embedding, norms) stays float32.
    """
    dtype, decoder = jnp.dtype(config.dtype), params["decoder"]

    def compute_type(path, leaf):
        is_norm = "scale" in jax.tree_util.keystr(path)
        return jnp.asarray(leaf) if is_norm else jnp.asarray(leaf, dtype)

    stack = jax.tree_util.tree_map_with_path(compute_type, decoder["layers"])
    return Weights(
        visual=jax.tree.map(jnp.asarray, params["patch_embed"]),
        embed_tokens=jnp.asarray(decoder["embed_tokens"], dtype),
        norm=jax.tree.map(jnp.asarray, decoder["norm"]),
        lm_head=jnp.asarray(decoder["lm_head"], dtype) if "lm_head" in decoder else None,
        layers=tuple(
            jax.tree.map(lambda leaf, index=index: _nth(leaf, index), stack)
            for index in range(config.num_layers)
        ),
    )


@jax.jit
def _nth(leaf, index):
    return jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False)


def parameter_count(weights: Weights) -> int:
    """The number of parameters, however they are stored."""
    leaves = jax.tree.leaves(weights, is_leaf=quantized.is_quantized)
    return sum(math.prod(leaf.shape) for leaf in leaves)


def stack_layers(weights: Weights) -> dict[str, Any]:
    """The inverse of `unstack_layers`: the parameter tree of `Elva`, in the types of `weights`.

    NumPy's arrays stay on the host.
    """

    def stack(*leaves: Any) -> Any:
        return (np if isinstance(leaves[0], np.ndarray) else jnp).stack(leaves)

    decoder = {
        "embed_tokens": weights.embed_tokens,
        "norm": weights.norm,
        "layers": jax.tree.map(stack, *weights.layers),
    }
    if weights.lm_head is not None:
        decoder["lm_head"] = weights.lm_head
    return {"patch_embed": weights.visual, "decoder": decoder}


def mesh_shardings(config: ModelConfig, mesh: Mesh) -> dict[str, Any]:
    """The sharding of every parameter of `Elva` by the project's rules.

    Args:
      config: the model.
      mesh: axes named as in `parallel.mesh.AXES`; those it lacks count as 1.

    Raises:
      ConfigError: an axis of another name.
    """
    return parameter_shardings(*_described(config, with_all_axes(mesh)))


def mesh_rules(config: ModelConfig, mesh: Mesh) -> tuple[tuple[str, MeshAxes], ...]:
    """How `mesh` splits the model's activations, in Linen's form; arguments as above."""
    return activation_rules(*_described(config, with_all_axes(mesh)))


def _described(config: ModelConfig, mesh: Mesh) -> tuple[Any, Mesh, dict[str, int]]:
    """The boxed parameters of `Elva`, the mesh, and the sizes that no parameter shows."""
    sizes = {"heads": config.num_heads, "kv_heads": config.num_kv_heads}
    return abstract_params(config), mesh, sizes


def embed(
    config: ModelConfig, weights: Weights, patches: UInt8[AnyArray, "B N K"], layout: TokenLayout
) -> tuple[Float[Array, "B S D"], Float32[Array, "B clips E"] | None]:
    """Input embeddings, as `Elva.embed`; and the weights of a MERV's encoders, if it has any."""
    visual, beside = visual_embed(config).apply(
        {"params": weights.visual}, patches, layout, mutable=["intermediates"]
    )
    (fusion,) = beside.get("intermediates", {}).get("fusion_weights", (None,))
    if fusion is not None:
        fusion = fusion.reshape(patches.shape[0], -1, fusion.shape[-1])
    x = input_embeddings(
        lambda ids: text_embeddings(config, weights, ids), cast(jax.Array, visual), layout
    )
    return nn.with_logical_constraint(x, ("batch", "seq", None)), fusion


def text_embeddings(
    config: ModelConfig, weights: Weights, ids: Int[AnyArray, "B S"]
) -> Float[Array, "B S D"]:
    """Rows of the embedding table, in the compute type."""
    # As in `Qwen2.embed`: the table is gathered over fsdp, not the batch.
    table = jax.tree.map(
        lambda leaf: nn.with_logical_constraint(leaf, ("vocab", None)), weights.embed_tokens
    )
    rows = quantized.rows(table, ids, config.dtype) if quantized.is_quantized(table) else table[ids]
    return nn.with_logical_constraint(rows, ("batch", "seq", None))


def final_norm(
    config: ModelConfig, weights: Weights, x: Float[Array, "*B D"]
) -> Float[Array, "*B D"]:
    """The last layer's output after the final norm, in the compute type."""
    normed = rms_norm(config).apply({"params": weights.norm}, x)
    return cast(jax.Array, normed).astype(config.dtype)


def logits(
    config: ModelConfig, weights: Weights, x: Float[Array, "*B D"]
) -> Float32[Array, "*B V"]:
    """Logits of the last layer's output: final norm and head."""
    hidden = final_norm(config, weights, x)
    return vocabulary_logits(hidden, weights.embed_tokens, weights.lm_head)
