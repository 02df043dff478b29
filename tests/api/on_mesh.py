"""What models say on a mesh: `on_mesh.py [[PATH, SIZES, AXES, WEIGHTS], …]` prints a JSON each."""

import dataclasses
import json
import re
import sys
from unittest import mock

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo

import elva_jax
from elva_jax import testing
from elva_jax.inference import prefill
from elva_jax.inference.engine import Decoding
from elva_jax.inference.scoring import Choice
from elva_jax.ops.attention import cudnn

QUESTIONS = ("What color?", "And now?")


def facts(model, *, chats):
    """Tokens and scores of a chat and of a batch of three rows, and how arrays are split."""
    videos = [testing.tiny_video(color=color) for color in ("red", "green", "blue")]
    prefilled = model.prefill([model.read_all(video) for video in videos])
    scores = prefilled.score([[Choice(QUESTIONS[0], ("red", "blue"))]] * 3)
    decoding = Decoding(max_new_tokens=4, capacity=8, interval=4)
    state = model.engine.start(prefilled.prefix, [[[1, 2]]] * 3, decoding)
    *_, last = model.engine.decode(prefilled.prefix, state, [1, 1, 1], decoding)
    caches = [*prefilled.prefix.layers, *last.state.suffix]
    arrays = [array for cache in caches for array in (cache.k, cache.v)]
    kernel = jax.tree.leaves(model.engine.weights.layers[0]["q_proj"]["kernel"])[0]
    chat = model.chat(videos[0], max_new_tokens=4)
    return {
        "tokens": [list(row) for rows in last.tokens for row in rows],
        "chat": [list(chat.ask(question).tokens) for question in QUESTIONS] if chats else [],
        "merged": prefilled.prefix.tokens[:, :3].tolist(),
        "scores": [score.total for row in scores for tree in row for score in tree],
        "part": kernel.addressable_shards[0].data.size / kernel.size,
        "cache": sorted({array.addressable_shards[0].data.size / array.size for array in arrays}),
    }


def kernels_of_cuda(model, rows=4, tokens=2048):
    """q of one device in each call of cuDNN's attention in a layer of prefill in bfloat16."""

    def shape(*dims, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct((rows, tokens, *dims), dtype)

    config = dataclasses.replace(model.engine.config, dtype="bfloat16")
    angles, half = shape(config.head_dim // 2, dtype=jnp.float32), (jnp.bfloat16, jnp.float16)
    inputs = prefill.LayerInputs(angles, angles, shape(dtype=jnp.int32))
    x, layer = shape(config.hidden_size), model.engine.weights.layers[0]
    with (
        mock.patch.object(fused_attention_stablehlo, "check_cudnn_version", return_value=91_000),
        mock.patch.object(cudnn, "obstacle", lambda _, dtype: "" if dtype in half else "type"),
        model.engine.placement.on(rows),
    ):
        traced = prefill.run_layer.trace(config, layer, x, inputs)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    q = re.findall(r"@__cudnn\$fmhaSoftmax\(.*?: \(tensor<([0-9x]+)xbf16>", text)
    return [[int(size) for size in each.split("x")] for each in q]


if __name__ == "__main__":
    for number, (path, sizes, axes, weights) in enumerate(json.loads(sys.argv[1])):
        model = elva_jax.load(path, mesh=jax.make_mesh(sizes, axes), weights=weights)
        cuda = {"cuda": kernels_of_cuda(model)}
        print(json.dumps(facts(model, chats=number == 0) | cuda))
