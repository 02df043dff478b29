"""Compares the results of a GPU with those of the CPU: `python tests/gpu/check.py [PART]…`.

Prints a line of JSON per check; the exit status is 1 if one fails. Needs a GPU, so CI does not run
it. A PART of names, such as `train`, chooses checks.
"""

import json
import os
import sys
import traceback
from functools import partial
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("JAX_PLATFORMS", "cuda,cpu")
sys.path.insert(0, str(Path(__file__).parents[2]))

import jax
import jax.numpy as jnp
import numpy as np
from tests.parallel import equality

from elva_jax import testing
from elva_jax.config.schema import TeacherConfig
from elva_jax.models.towers.siglip import SiglipVision
from elva_jax.ops.attention.blocked import blocked_attention
from elva_jax.ops.attention.cudnn import fused_attention
from elva_jax.training import step

CPU, GPU = jax.devices("cpu")[0], jax.devices()[0]


def relative(got, want) -> float:
    """|got - want| / |want|, in float64."""
    got, want = (np.asarray(x, np.float64) for x in (got, want))
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def attention(length: int, heads: int, kv_heads: int, rows: str) -> dict:
    """cuDNN's kernel in bfloat16 beside the blocks in float32 on the CPU, and its gradients."""
    rng = np.random.default_rng(length)
    shapes = [(2, length, n, 128) for n in (heads, kv_heads, kv_heads, heads)]
    q, k, v, weight = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in shapes)
    segment = np.ones((2, length), np.int32)
    turn = None if rows == "single" else np.zeros((2, length), np.int32)
    if rows == "packed":
        segment[:, length // 3 :] = 2
        turn[0, length // 2 :], turn[0, 3 * length // 4 :] = 1, 2
    if rows != "single":
        segment[1, -length // 5 :] = 0

    def value(function, q, k, v, weight):
        out = function(q, k, v, segment, turn, single=rows == "single")
        out = jnp.where((segment > 0)[..., None, None], out, 0)
        return jnp.sum((out * weight).astype(jnp.float32)), out

    def both(function, device, dtype):
        inputs = [jax.device_put(np.asarray(x, np.float32), device) for x in (q, k, v, weight)]
        inputs = [x.astype(dtype) for x in inputs]
        run = jax.value_and_grad(lambda *x: value(function, *x), (0, 1, 2), has_aux=True)
        (_, out), grads = jax.jit(run)(*inputs)
        return [np.asarray(x, np.float32) for x in (out, *grads)]

    got = both(fused_attention, GPU, jnp.bfloat16)
    want = both(blocked_attention, CPU, jnp.float32)
    names = ("out", "dq", "dk", "dv")
    errors = {name: relative(*pair) for name, *pair in zip(names, got, want, strict=True)}
    # bfloat16 keeps 8 bits, so products of such numbers differ by 2^-9 on average.
    return {"errors": errors, "ok": max(errors.values()) < 1e-2}


def teacher() -> dict:
    """SigLIP's features in bfloat16, beside those in float32 on the CPU."""
    config = TeacherConfig(
        image_size=112, hidden_size=288, intermediate_size=1152, num_layers=4, num_heads=4
    )
    pixels = np.random.default_rng(0).uniform(-1, 1, (4, 112, 112, 3)).astype(np.float32)
    with jax.default_device(CPU):
        params = SiglipVision(config).init(jax.random.key(0), pixels)["params"]

    def on(device, dtype):
        inputs = jax.device_put((params, pixels), device)
        tower = SiglipVision(config, dtype)
        return jax.jit(lambda p, x: tower.apply({"params": p}, x).penultimate)(*inputs)

    error = relative(on(GPU, "bfloat16"), on(CPU, "float32"))
    return {"error": error, "ok": error < 2e-2}


def train(stage: str) -> dict:
    """Loss and gradients of a toy stage in float32, merging included."""
    _, task, batch = equality.toy(stage)
    params, frozen = equality.weights(stage)

    def both(device):
        inputs = jax.device_put((params, frozen, batch), device)
        run = jax.jit(lambda p, f, b: step.value_and_grad(task.loss, p, f, b, 1)[::2])
        return jax.device_get(run(*inputs))

    with jax.default_matmul_precision("highest"):
        (loss, grads), (want, want_grads) = both(GPU), both(CPU)
        again, grads_again = both(GPU)
    pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(want_grads), strict=True)
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(want_grads))
    worst = max(float(np.abs(a - b).max()) for a, b in pairs) / largest
    same = all(map(np.array_equal, jax.tree.leaves(grads), jax.tree.leaves(grads_again)))
    return {
        "loss": abs(float(loss / want) - 1),
        "gradient": worst,
        "two runs bitwise": bool(same and loss == again),
        "ok": abs(float(loss / want) - 1) < 1e-5 and worst < 1e-4,
    }


def answers() -> dict:
    """Greedy answers and hidden states of a tiny model in float32, with and without merging."""
    questions = ["What moves?", "Describe the video.", "What color is the square?"]

    def on(device):
        with jax.default_device(device), jax.default_matmul_precision("highest"):
            model = testing.tiny_model()
            return [
                str(model.answer(testing.tiny_video(seed=n), question, max_new_tokens=24))
                for n in range(3)
                for question in questions
            ]

    got, want = on(GPU), on(CPU)
    return {"answers": len(want), "same": sum(map(str.__eq__, got, want)), "ok": got == want}


def main() -> int:
    """Runs all checks."""
    print(json.dumps({"device": GPU.device_kind, "jax": jax.__version__}))
    if GPU.platform == "cpu":
        print("tests/gpu/check.py: JAX sees no GPU; install jax[cuda13]", file=sys.stderr)
        return 1
    checks = {
        f"attention {length} {heads}/{kv} {rows}": partial(attention, length, heads, kv, rows)
        for length, heads, kv in ((256, 12, 2), (1000, 12, 2), (2560, 28, 4))
        for rows in ("single", "padded", "packed")
    }
    checks |= {"teacher": teacher}
    checks |= {f"train {stage}": partial(train, stage) for stage in equality.STAGES}
    checks["answers"] = answers
    failed, chosen = 0, sys.argv[1:]
    for name, check in checks.items():
        if chosen and not any(word in name for word in chosen):
            continue
        try:
            result = check()
        except Exception as error:
            traceback.print_exc()
            result = {"ok": False, "error": f"{type(error).__name__}: {error}"[:300]}
        failed += not result["ok"]
        print(json.dumps({"check": name, **result}), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
