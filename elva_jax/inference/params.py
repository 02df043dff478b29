"""Parameters as inference reads them: one tree a decoder layer, matrices in the compute type.

Training stacks all layers in one subtree, which suits its scan. A program that slices such a stack copies every weight it reads, and one
token at a time the weights are all there is to read; so inference takes the stack apart once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from elva_jax.models.config import ElvaConfig
from elva_jax.models.elva import input_embeddings, visual_embed
from elva_jax.models.qwen2 import rms_norm, vocabulary_logits
from elva_jax.video.layout import TokenLayout


class Weights(NamedTuple):
    """The parameters of `Elva`, taken apart."""

    visual: Any  # of the patch embedding
    embed_tokens: jax.Array  # [V, D]
    norm: Any  # of the final norm
    lm_head: jax.Array | None  # [D, V]; None where the embedding table is the head
    layers: tuple[Any, ...]  # of each `DecoderLayer`


def take_apart(config: ElvaConfig, params: Any) -> Weights:
    """Weights of `Elva`'s parameters: float32 stays where the model computes in float32 (patch embedding, norms)."""
    dtype, decoder = jnp.dtype(config.dtype), params["decoder"]

    def compute_type(path, leaf):
        return (
            jnp.asarray(leaf) if "scale" in jax.tree_util.keystr(path) else jnp.asarray(leaf, dtype)
        )

    @jax.jit
    def nth(leaf, index):
        return jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False)

    stack = jax.tree_util.tree_map_with_path(compute_type, decoder["layers"])
    return Weights(
        visual=jax.tree.map(jnp.asarray, params["patch_embed"]),
        embed_tokens=jnp.asarray(decoder["embed_tokens"], dtype),
        norm=jax.tree.map(jnp.asarray, decoder["norm"]),
        lm_head=jnp.asarray(decoder["lm_head"], dtype) if "lm_head" in decoder else None,
        layers=tuple(
            jax.tree.map(lambda leaf, index=index: nth(leaf, index), stack)
            for index in range(config.decoder.num_layers)
        ),
    )


def embed(
    config: ElvaConfig, weights: Weights, patches_BxNxK: jax.Array, layout: TokenLayout
) -> jax.Array:
    """Input embeddings [B, S, D], as `Elva.embed`."""
    visual = visual_embed(config).apply({"params": weights.visual}, patches_BxNxK, layout)
    return input_embeddings(weights.embed_tokens.__getitem__, visual, layout)


def logits(config: ElvaConfig, weights: Weights, x: jax.Array) -> jax.Array:
    """float32 logits [..., V] of the last layer's output [..., D]: final norm and head."""
    hidden = rms_norm(config.decoder).apply({"params": weights.norm}, x).astype(config.dtype)
    return vocabulary_logits(hidden, weights.embed_tokens, weights.lm_head)
