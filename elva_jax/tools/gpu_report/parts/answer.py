"""7B on one question about 32 frames: prefill against peak FLOP/s, decoding against bandwidth."""

from __future__ import annotations

import time
from typing import Any

from elva_jax.tools.gpu_report.context import Context, per_call
from elva_jax.tools.gpu_report.parts.table5 import models_of

FRAMES = 32  # of 336 px: 5,038 tokens
ROUNDS, TOKENS = 3, 64


def run(context: Context, scheme: str) -> None:
    """Measures the encoder-free model without merging; `scheme` is none, int8 or int4."""
    import jax

    frames, tokens = (4, 3) if context.dry else (FRAMES, TOKENS)
    with context.case("weights", scheme=scheme) as row:
        model = models_of(context, ("encoder_free",))["encoder_free"]
        if scheme != "none":
            model = _quantized(model, scheme)
        jax.block_until_ready(model.weights)
        row["bytes"] = model.held_bytes()
    if "error" in row:
        return
    question = model.question(frames, "typical", ROUNDS * tokens + 1)
    rows = question.rows()
    prefix = jax.block_until_ready(question.prefill(rows))
    with context.case("prefill", scheme=scheme) as row:
        length = int(rows.length[0])
        row |= {"tokens": length, "padded": rows.layout.kind.shape[1]}
        row["seconds"] = per_call(lambda: question.prefill(rows).layers)
        row["flops"] = prefill_flops(model, length, int((rows.layout.patch_index >= 0).sum()))
        row["share"] = context.share(row["flops"], row["seconds"]["median"], context.card.flops)
    with context.case("decode", scheme=scheme) as row:
        row |= _decode(context, model, question, prefix, tokens)


def _quantized(model: Any, scheme: Any) -> Any:
    import dataclasses

    from elva_jax.inference.quantization import quantize_weights

    return dataclasses.replace(model, weights=quantize_weights(model.weights, scheme))


def prefill_flops(model: Any, length: int, patches: int) -> float:
    """Matrix products of prefill with causal attention.

    The last layer makes keys and values only.
    """
    from elva_jax.models import flops

    config = model.config
    layers = config.num_layers - 1
    linear = layers * flops.layer_weights(config) + flops.key_value_weights(config)
    attention = layers * flops.layer_attention(config, length * (length + 1) / 2)
    return 2.0 * length * linear + attention + flops.patch_embedding(config, patches, length)


def _decode(
    context: Context, model: Any, question: Any, prefix: Any, tokens: int
) -> dict[str, Any]:
    """Continues one answer; a token reads all weights, and all keys and values before it."""
    import jax

    from elva_jax.inference import decode

    state = decode.feed(*question.feed_arguments(prefix))
    _, state = jax.block_until_ready(question.advance(prefix, state, 1))  # compiles
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        _, state = jax.block_until_ready(question.advance(prefix, state, tokens))
        seconds.append((time.perf_counter() - start) / tokens)
    best = min(seconds)
    config, weights = model.config, model.weights
    read = sum(leaf.nbytes for leaf in jax.tree.leaves(weights.layers))
    read += sum(leaf.nbytes for leaf in jax.tree.leaves(_head(weights)))
    caches = sum(leaf.nbytes for leaf in jax.tree.leaves((prefix.layers, state.suffix)))
    return {
        "prefix": int(prefix.length[0]),
        "seconds_per_token": best,
        "tokens_per_second": 1 / best,
        "bytes": read + caches,
        "bytes_of_weights": read,
        "layers": config.num_layers,
        "share": context.share(read + caches, best, context.card.bandwidth),
    }


def _head(weights: Any) -> Any:
    return weights.embed_tokens if weights.lm_head is None else weights.lm_head
