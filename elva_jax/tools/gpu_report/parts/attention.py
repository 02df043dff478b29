"""cuDNN's attention beside XLA's: numbers and time, forward and with gradients."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from elva_jax.models.flops import layer_attention
from elva_jax.tools.analysis.paper import QWEN2_1_5B
from elva_jax.tools.gpu_report.context import Context, compile_all, per_call

LENGTHS = (1024, 5120, 20_480, 2560, 10_240)  # in the order of their value
HEADS = (12, 2)  # of 1.5B
HEAD_DIM = 128
# As prefill calls it; as training calls it on one example per row, and on several with turns.
KINDS = ("prefill", "single", "packed")


def run(context: Context) -> None:
    """Measures every length and kind of rows."""
    for length in (64,) if context.dry else LENGTHS:
        for kind in ("prefill", "packed") if context.dry else KINDS:
            with context.case(f"{kind} {length}", length=length, rows=kind) as row:
                row |= _measure(context, length, kind)


def _inputs(length: int, kind: str) -> tuple[list[Any], Any, Any]:
    """Queries, keys and values, the gradient's direction, segments and turns."""
    rng = np.random.default_rng(length)
    arrays = [
        rng.normal(size=(1, length, heads, HEAD_DIM)).astype(np.float32)
        for heads in (HEADS[0], HEADS[1], HEADS[1], HEADS[0])
    ]
    segment, turn = np.ones((1, length), np.int32), np.zeros((1, length), np.int32)
    if kind == "packed":
        segment[:, length // 3 :] = 2
        turn[0, length // 2 :], turn[0, 3 * length // 4 :] = 1, 2
        segment[:, -length // 16 :] = 0
    return arrays, segment, turn


def _programs(kind: str, segment: Any, turn: Any) -> tuple[Any, Any]:
    """Functions of (q, k, v, direction): the attended values; these and three gradients."""
    import jax
    import jax.numpy as jnp

    from elva_jax.ops.attention import packed_attention

    single = kind == "prefill"
    used = jnp.asarray(segment > 0)[..., None, None]

    def attend(implementation: str, q: Any, k: Any, v: Any) -> Any:
        turns = None if single else turn
        out = packed_attention(
            q, k, v, segment, turns, single=single, implementation=implementation
        )
        return jnp.where(used, out, 0)

    def loss(implementation: str, q: Any, k: Any, v: Any, direction: Any) -> Any:
        out = attend(implementation, q, k, v)
        return jnp.sum(out.astype(jnp.float32) * direction.astype(jnp.float32))

    def forward(implementation: str) -> Any:
        return jax.jit(partial(attend, implementation))

    def gradients(implementation: str) -> Any:
        return jax.jit(jax.grad(partial(loss, implementation), (0, 1, 2)))

    return forward, gradients


def _measure(context: Context, length: int, kind: str) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    from elva_jax.ops.attention import choose_implementation

    arrays, segment, turn = _inputs(length, kind)
    forward, gradients = _programs(kind, segment, turn)
    fused = choose_implementation(HEAD_DIM, jnp.bfloat16).name == "cudnn"
    names = ("cudnn", "xla") if fused else ("xla",)
    half = [jnp.asarray(x, jnp.bfloat16) for x in arrays]
    exact = [x.astype(jnp.float32) for x in half]
    programs = {f"{name} forward": (forward(name), (*half[:3],)) for name in names}
    if kind != "prefill":
        programs |= {f"{name} gradients": (gradients(name), (*half,)) for name in names}
    with jax.default_matmul_precision("highest"):
        reference = {"forward": (forward("xla"), (*exact[:3],))}
        if kind != "prefill":
            reference["gradients"] = (gradients("xla"), (*exact,))
        wanted = compile_all(reference)
    compiled = compile_all(programs)
    want = {
        name: jax.device_get(program(*reference[name][1]))
        for name, program in wanted.items()
        if not isinstance(program, Exception)
    }
    out: dict[str, Any] = {"seconds": {}, "errors": {}}
    for name, program in compiled.items():
        if isinstance(program, Exception):
            out["errors"][name] = str(program).splitlines()[0][:200]
            continue
        inputs, step = programs[name][1], name.split()[1]
        got = jax.device_get(program(*inputs))
        if step in want:
            out["errors"][name] = _relative(got, want[step])
        out["seconds"][name] = per_call(partial(program, *inputs))
        work = layer_attention(QWEN2_1_5B, length * (length + 1) / 2)
        work *= 1.0 if step == "forward" else 3.5  # forward, and the backward pass's five products
        if kind != "packed":
            seconds = out["seconds"][name]["median"]
            out.setdefault("share", {})[name] = context.share(work, seconds, context.card.flops)
    return out


def _relative(got: Any, want: Any) -> float:
    """The largest |got - want| / |want| among the results."""
    import jax

    errors = []
    for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        errors.append(float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(b)), 1e-30))
    return max(errors)
