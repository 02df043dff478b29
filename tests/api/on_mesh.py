"""What models say on a mesh: `on_mesh.py [[PATH, SIZES, AXES, WEIGHTS], …] BODY` prints JSON lines.

The first line is of the second model: its memory on one device while it prefills in chunks, and
what `elva serve` on a mesh replies to the request BODY. Media are in the folder above the model.
"""

import contextlib
import dataclasses
import io
import json
import os
import re
import signal
import sys
import threading
import time
import urllib.request
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo

import elva_jax
from elva_jax import cli, testing
from elva_jax.inference import prefill
from elva_jax.inference.engine import Decoding
from elva_jax.inference.scoring import Choice
from elva_jax.ops.attention import cudnn
from elva_jax.parallel.mesh import on_host

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
        mock.patch.object(
            cudnn, "obstacle", lambda _, dtype, backend="": "" if dtype in half else "type"
        ),
        model.engine.placement.on(rows),
    ):
        traced = prefill.run_layer.trace(config, layer, x, inputs)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    q = re.findall(r"@__cudnn\$fmhaSoftmax\(.*?: \(tensor<([0-9x]+)xbf16>", text)
    return [[int(size) for size in each.split("x")] for each in q]


def beyond_caches(path, frames):
    """Most bytes on the model's device beside weights and caches during prefill in chunks."""
    model = elva_jax.load(path, prefill_chunk=32)
    put, device, most = model.engine.placement.put, jax.devices()[0], 0

    def alive():
        """Without keys and values, the only arrays of four axes, and their masks."""
        arrays = [array for array in jax.live_arrays() if array.ndim < 4 and array.dtype != bool]
        return sum(array.nbytes for array in arrays if array.devices() == {device})

    def watched(tree):
        nonlocal most
        arrays = put(tree)
        most = max(most, alive() - before)
        return arrays

    model.engine.placement.put = watched
    media, before = model.read_all(testing.tiny_video(frames), frames=frames), alive()
    merging = elva_jax.Merging((elva_jax.MergeLayer(1, "ratio", ratio=0.3),))  # few programs
    prefilled = model.prefill([media], merging=merging)
    return prefilled.prefix.tokens[:, 0].tolist(), most


def host_beside(mesh):
    """The devices of a program on the host while a mesh is in use."""
    with jax.set_mesh(mesh), on_host():
        return [device.id for device in jnp.sort(jnp.arange(3)).devices()]


def served(path, body, mesh):
    """The exit status of `elva serve --mesh`, and what it replies to one request."""
    out, replies = io.StringIO(), []

    def client():
        end = time.monotonic() + 200
        while not (found := re.search(r"http\S+/v1", out.getvalue())) and time.monotonic() < end:
            time.sleep(0.02)
        try:
            url, kind = f"{found[0]}/chat/completions", {"Content-Type": "application/json"}
            request = urllib.request.Request(url, body.encode(), kind)
            with urllib.request.urlopen(request, timeout=200) as reply:
                replies.append(json.load(reply)["choices"][0]["message"]["content"])
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    words = "--port 0 --slots 2 --context 128 --question 64 --max-new-tokens 8 --warm-up off"
    words += f" --mesh {mesh} --media-dir {Path(path).parent} --checkpoint {path}"
    thread = threading.Thread(target=client)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        thread.start()
        status = cli.main(["serve", *words.split()])
    thread.join()
    return [status, *replies]


if __name__ == "__main__":
    path, *_ = json.loads(sys.argv[1])[1]
    flat = {"flat": [beyond_caches(path, frames) for frames in (8, 32)]}
    host = {"host": host_beside(jax.make_mesh((2,), ("data",)))}
    served_on = {"served": served(path, sys.argv[2], "data=4,tensor=2")}
    print(json.dumps(flat | host | served_on))
    for number, (path, sizes, axes, weights) in enumerate(json.loads(sys.argv[1])):
        model = elva_jax.load(path, mesh=jax.make_mesh(sizes, axes), weights=weights)
        cuda = {"cuda": kernels_of_cuda(model)}
        print(json.dumps(facts(model, chats=number == 0) | cuda))
