"""What models say on a mesh: `on_mesh.py [[PATH, SIZES, AXES, WEIGHTS], …]` prints a JSON each."""

import json
import sys

import jax

import elva_jax
from elva_jax import testing
from elva_jax.inference.engine import Decoding
from elva_jax.inference.scoring import Choice

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


if __name__ == "__main__":
    for number, (path, sizes, axes, weights) in enumerate(json.loads(sys.argv[1])):
        model = elva_jax.load(path, mesh=jax.make_mesh(sizes, axes), weights=weights)
        print(json.dumps(facts(model, chats=number == 0)))
