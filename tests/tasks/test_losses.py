"""The loss terms against PyTorch and plain NumPy, on empty sets, and sharded."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jax.extend.core import jaxprs_in_params

from elva_jax.errors import ConfigError
from elva_jax.tasks.losses import (
    contrastive_loss,
    gather_frames,
    generation_loss,
    l2_normalize,
    sigmoid_loss,
    tube_loss,
)
from elva_jax.video.layout import Clip, Kind, Text, TokenLayout, build_layout, pack

RNG = np.random.default_rng(0)


def batch_layout(length=64):
    """Two rows: a packed one with mixed grids, and one with text before a clip."""
    clip = [Text([1]), Clip([(2, 2), (1, 2), (2, 2)]), Text([2])]
    rows = [
        [build_layout(clip), build_layout([Clip([(2, 2)] * 2)])],
        [build_layout([Text([3]), Clip([(1, 3)] * 3)])],
    ]
    return TokenLayout(
        *(np.stack(fields) for fields in zip(*(pack(row, length) for row in rows), strict=True))
    )


def text_layout(length=64):
    """Two rows without any visual token."""
    return TokenLayout(
        *(np.stack([field] * 2) for field in pack([build_layout([Text([1, 2])])], length))
    )


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


B, T, D, V = 2, 13, 6, 11


@pytest.mark.parametrize("chunk", [0, 4, 13, 50])
def test_generation_equals_torch(chunk):
    hidden, kernel = normal(B, T, D), normal(D, V)
    target, weight = RNG.integers(0, V, (B, T)), RNG.uniform(0, 2, (B, T)).astype(np.float32)
    weight[:, :4], weight[1] = 0, 0.5
    value = jax.jit(
        jax.value_and_grad(
            lambda h, k: generation_loss(h, lambda h: h @ k, target, weight, chunk),
            (0, 1),
            has_aux=True,
        )
    )
    (loss, metrics), gradients = value(hidden, kernel)

    leaves = [torch.tensor(a, requires_grad=True) for a in (hidden, kernel)]
    logits = leaves[0] @ leaves[1]
    nll = F.cross_entropy(
        logits.reshape(-1, V), torch.tensor(target).reshape(-1), reduction="none"
    ).reshape(B, T)
    want = (nll * torch.tensor(weight)).sum() / weight.sum()
    want.backward()
    np.testing.assert_allclose(loss, want.item(), rtol=1e-5)
    for got, leaf in zip(gradients, leaves, strict=True):
        np.testing.assert_allclose(got, leaf.grad, atol=1e-5)
    hits = (logits.argmax(-1).numpy() == target) * weight
    np.testing.assert_allclose(metrics["accuracy"], hits.sum() / weight.sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["target_weight"], weight.sum(), rtol=1e-6)


def _sizes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from _sizes(inner)


def test_chunked_generation_never_holds_all_logits():
    vocabulary = 4096
    hidden, kernel = normal(B, 32, D), normal(D, vocabulary)
    target, weight = np.zeros((B, 32), np.int32), np.ones((B, 32), np.float32)

    def largest(chunk):
        gradient = jax.grad(
            lambda h, k: generation_loss(h, lambda h: h @ k, target, weight, chunk)[0], (0, 1)
        )
        return max(_sizes(jax.make_jaxpr(gradient)(hidden, kernel).jaxpr))

    assert largest(0) == B * 32 * vocabulary
    assert largest(4) == B * 4 * vocabulary


def plain_tube(student, teacher, layout, reduction, temporal):
    distances, cosines = [], []
    for row in range(student.shape[0]):
        groups = {}
        for i in range(student.shape[1]):
            if layout.kind[row, i] == Kind.PATCH:
                groups.setdefault(layout.tube[row, i] if temporal == "mean" else i, []).append(i)
        for members in groups.values():
            a, b = (x[row, members].astype(np.float64).mean(0) for x in (student, teacher))
            a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
            distances.append(((a - b) ** 2).sum() if reduction == "sum" else ((a - b) ** 2).mean())
            cosines.append(a @ b)
    return np.mean(distances), np.mean(cosines)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("temporal", ["mean", "none"])
def test_tube_loss_equals_the_plain_reading(reduction, temporal):
    layout = batch_layout()
    student, teacher = normal(2, 64, 5), normal(2, 64, 5)
    student[layout.kind != Kind.PATCH] = np.nan  # must not matter
    value = jax.jit(
        jax.value_and_grad(
            lambda s, t: tube_loss(s, t, layout, reduction=reduction, temporal=temporal),
            (0, 1),
            has_aux=True,
        )
    )
    (loss, metrics), (to_student, to_teacher) = value(student, teacher)
    distance, cosine = plain_tube(student, teacher, layout, reduction, temporal)
    np.testing.assert_allclose(loss, distance, rtol=1e-5)
    np.testing.assert_allclose(metrics["tube_cosine"], cosine, rtol=1e-4)
    assert not np.asarray(to_teacher).any()
    assert np.isfinite(to_student).all()
    assert np.asarray(to_student)[layout.kind == Kind.PATCH].any(axis=-1).all()
    if reduction == "sum":
        np.testing.assert_allclose(loss, 2 * (1 - cosine), rtol=1e-4)


def test_tube_loss_is_zero_for_the_teachers_own_features_at_any_scale():
    layout, teacher = batch_layout(), normal(2, 64, 5)
    loss, metrics = jax.jit(tube_loss)(teacher * 7, teacher, layout)
    np.testing.assert_allclose(loss, 0, atol=1e-6)
    np.testing.assert_allclose(metrics["tube_cosine"], 1, rtol=1e-6)


def test_gather_frames_finds_every_frame_token():
    layout, x = batch_layout(), normal(2, 64, 3)
    gather = jax.jit(gather_frames, static_argnums=2)
    slots, valid = jax.device_get(gather(x, layout, 6))
    np.testing.assert_array_equal(valid, [[True] * 5 + [False], [True] * 3 + [False] * 3])
    for row in range(2):
        for i in np.flatnonzero(layout.kind[row] == Kind.FRAME):
            np.testing.assert_array_equal(slots[row, layout.frame[row, i]], x[row, i])
    assert not slots[~valid].any()
    few, _ = gather(x, layout, 4)  # frames without a slot are left out, not written elsewhere
    np.testing.assert_array_equal(few, slots[:, :4])


def frames_case():
    valid = np.array(
        [[True, True, False], [True, False, True], [False, False, False], [True, True, True]]
    )
    return normal(4, 3, 5), normal(4, 3, 5), valid


def test_contrastive_equals_torch_on_the_valid_frames():
    student, teacher, valid = frames_case()
    student[~valid] = 1e3  # must not matter
    value = jax.jit(
        jax.value_and_grad(
            lambda s, t, lt: contrastive_loss(s, t, valid, lt), (0, 1, 2), has_aux=True
        )
    )
    (loss, metrics), (to_student, to_teacher, to_temperature) = value(
        student, teacher, jnp.log(0.1)
    )

    leaf, log_temperature = (
        torch.tensor(student, requires_grad=True),
        torch.tensor(np.log(0.1), requires_grad=True),
    )
    a, b = (
        F.normalize(leaf[torch.tensor(valid)], dim=-1),
        F.normalize(torch.tensor(teacher)[torch.tensor(valid)], dim=-1),
    )
    logits = a @ b.T / log_temperature.exp()
    labels = torch.arange(len(a))
    want = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    want.backward()
    np.testing.assert_allclose(loss, want.item(), rtol=1e-5)
    np.testing.assert_allclose(to_student, leaf.grad, atol=1e-5)
    np.testing.assert_allclose(to_temperature, log_temperature.grad, rtol=1e-4)
    assert not np.asarray(to_teacher).any()
    np.testing.assert_allclose(
        metrics["frame_accuracy"], (logits.argmax(1) == labels).float().mean(), rtol=1e-6
    )
    np.testing.assert_allclose(metrics["temperature"], 0.1, rtol=1e-6)


def test_sigmoid_equals_torch_with_and_without_a_mask():
    image, text = normal(6, 5), normal(6, 5)
    mask = np.array([True, False, True, True, True, False])
    for keep in (np.ones(6, bool), mask):
        a, b = (
            F.normalize(torch.tensor(image[keep]), dim=-1),
            F.normalize(torch.tensor(text[keep]), dim=-1),
        )
        logits = b @ a.T * 3.0 - 1.5
        want = (
            -F.logsigmoid((2 * torch.eye(len(a)) - 1) * logits).sum(-1).mean()
        )  # transformers' SiglipModel loss
        loss, metrics = jax.jit(sigmoid_loss)(image, text, np.log(3.0), -1.5, keep)
        np.testing.assert_allclose(loss, want, rtol=1e-5)
        np.testing.assert_allclose(
            metrics["match_accuracy"],
            (logits.T.argmax(1) == torch.arange(len(a))).float().mean(),
            rtol=1e-6,
        )
    unmasked, _ = sigmoid_loss(
        jnp.asarray(image), jnp.asarray(text), jnp.log(3.0), jnp.float32(-1.5)
    )
    everyone, _ = sigmoid_loss(
        jnp.asarray(image), jnp.asarray(text), jnp.log(3.0), jnp.float32(-1.5), jnp.ones(6, bool)
    )
    assert unmasked == everyone


def test_l2_normalize_equals_torch_and_survives_zero():
    x = normal(4, 5)
    x[1] = 0
    np.testing.assert_allclose(
        l2_normalize(jnp.asarray(x)), F.normalize(torch.tensor(x), dim=-1), rtol=1e-5
    )
    assert np.isfinite(jax.grad(lambda x: l2_normalize(x).sum())(jnp.asarray(x))).all()


def _empty_cases():
    layout = text_layout()
    x = normal(2, 64, 5)

    def contrast(x):
        slots, valid = gather_frames(x, layout, 4)
        return contrastive_loss(slots, slots, valid, jnp.float32(-2))

    return {
        "generation": lambda x: generation_loss(
            x, lambda h: h, np.zeros((2, 64), np.int32), np.zeros((2, 64), np.float32), 16
        ),
        "tube": lambda x: tube_loss(x, x, layout),
        "contrastive": contrast,
        "sigmoid": lambda x: sigmoid_loss(
            x[0], x[1], jnp.float32(1), jnp.float32(0), jnp.zeros(64, bool)
        ),
    }, x


@pytest.mark.parametrize("name", ["generation", "tube", "contrastive", "sigmoid"])
def test_empty_sets_give_zero_and_finite_gradients(name):
    cases, x = _empty_cases()
    (loss, metrics), gradient = jax.jit(jax.value_and_grad(cases[name], has_aux=True))(
        jnp.asarray(x)
    )
    assert loss == 0
    assert not np.asarray(gradient).any()
    assert all(np.isfinite(value) for value in metrics.values())


def test_bfloat16_features_give_float32_losses():
    layout = batch_layout()
    x = jnp.asarray(normal(2, 64, 5), jnp.bfloat16)

    @jax.jit
    def losses(x):
        slots, valid = gather_frames(x, layout, 5)
        return (tube_loss(x, x, layout), contrastive_loss(slots, slots, valid, jnp.float32(-2)))

    for loss, _ in losses(x):
        assert loss.dtype == jnp.float32
        assert np.isfinite(loss)


@pytest.mark.parametrize(("option", "value"), [("reduction", "max"), ("temporal", "last")])
def test_unknown_options_name_their_key(option, value):
    with pytest.raises(ConfigError, match=f"loss.tube_{option}"):
        tube_loss(jnp.zeros((2, 64, 5)), jnp.zeros((2, 64, 5)), batch_layout(), **{option: value})


def test_sharded_over_eight_devices_equals_one():
    """Runs `sharded_losses.py` in a process of its own, which has eight fake devices."""
    script = Path(__file__).with_name("sharded_losses.py")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("equal")
