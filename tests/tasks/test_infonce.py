"""InfoNCE between clips and captions: against PyTorch, in chunks, and over micro-batches."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jax.extend.core import jaxprs_in_params

from elva_jax.config.load import resolve
from elva_jax.errors import ConfigError
from elva_jax.models.towers.build import make_tower
from elva_jax.models.towers.common import to_pixels
from elva_jax.parallel.mesh import make_mesh
from elva_jax.tasks.infonce import infonce_loss
from elva_jax.tasks.registry import make_task
from elva_jax.tasks.siglip import SiglipTask
from elva_jax.tasks.video_text import VideoTextTask
from elva_jax.tools.plan import estimate
from elva_jax.training.setup import set_up
from elva_jax.training.step import value_and_grad
from elva_jax.utils.trees import flatten_paths

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def tiny():
    """The module tiny_video_text.py, which is not in a package."""
    path = Path(__file__).with_name("tiny_video_text.py")
    spec = importlib.util.spec_from_file_location("tiny_video_text", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def loss_and_gradients(chunk):
    def loss(clip, text, log_temperature):
        return infonce_loss(clip, text, log_temperature, chunk)

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))


@pytest.mark.parametrize("chunk", [0, 1, 4, 13, 20])
def test_it_equals_clips_loss_in_torch(chunk):
    clip, text = RNG.normal(size=(2, 13, 5)).astype(np.float32)
    (loss, terms), gradients = loss_and_gradients(chunk)(clip, text, jnp.log(0.1))

    leaves = [torch.tensor(x, requires_grad=True) for x in (clip, text, np.float32(np.log(0.1)))]
    a, b = (F.normalize(leaf, dim=-1) for leaf in leaves[:2])
    logits, labels = a @ b.T / leaves[2].exp(), torch.arange(13)
    want = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    want.backward()
    np.testing.assert_allclose(loss, want.item(), rtol=1e-5)
    for got, leaf in zip(gradients, leaves, strict=True):
        np.testing.assert_allclose(got, leaf.grad, atol=1e-5, rtol=1e-5)
    for name, scores in (("match_accuracy", logits), ("caption_accuracy", logits.T)):
        wanted = (scores.argmax(1) == labels).float().mean()
        np.testing.assert_allclose(terms[name], wanted, rtol=1e-6)
    np.testing.assert_allclose(terms["temperature"], 0.1, rtol=1e-6)


def test_the_temperature_has_a_minimum():
    clip, text = RNG.normal(size=(2, 4, 5)).astype(np.float32)
    (loss, terms), (_, _, gradient) = loss_and_gradients(0)(clip, text, jnp.log(1e-4))
    assert float(terms["temperature"]) == pytest.approx(0.01)
    assert gradient == 0
    assert np.isfinite(loss)


def sizes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from sizes(inner)


def test_chunks_never_hold_all_logits():
    clip, text = RNG.normal(size=(2, 64, 3)).astype(np.float32)

    def largest(chunk):
        return max(sizes(jax.make_jaxpr(loss_and_gradients(chunk))(clip, text, 0.0).jaxpr))

    assert largest(64) == 64 * 64
    assert largest(4) == 4 * 64


def test_micro_batches_have_the_loss_and_gradient_of_the_whole_batch(tiny):
    """Both towers are real; `sharded_losses.py` does the same on a mesh."""
    config = tiny.config(accumulate=4, remat=False)
    task = make_task(config, "videos")
    assert type(task) is VideoTextTask
    params = tiny.random_params(set_up(task, make_mesh(task.config.mesh), 1).shapes.params)
    batch = tiny.random_batch(8)

    def gradient(accumulate):
        def run(params, batch):
            return value_and_grad(
                task.loss, params, {}, batch, accumulate, look_ahead=task.look_ahead
            )

        return jax.device_get(jax.jit(run)(params, batch))

    (whole, terms, grads), (parts, part_terms, part_grads) = gradient(1), gradient(4)
    assert float(parts) == pytest.approx(float(whole), rel=1e-5)
    assert part_terms.keys() == terms.keys() == {
        *("tokens", "infonce", "match_accuracy", "caption_accuracy", "temperature")
    }  # fmt: skip
    for name, value in terms.items():
        assert float(part_terms[name]) == pytest.approx(float(value), rel=1e-5), name
    part_grads = flatten_paths(part_grads)
    largest = max(np.abs(leaf).max() for leaf in part_grads.values())
    for path, leaf in flatten_paths(grads).items():
        np.testing.assert_allclose(part_grads[path], leaf, atol=1e-5 * largest, err_msg=path)


@pytest.mark.parametrize("remat", [False, True])
def test_blocks_are_computed_again_where_it_says_so(tiny, remat):
    task = make_task(tiny.config(remat=remat), "videos")
    params = set_up(task, make_mesh(task.config.mesh), 1).shapes.params
    text = str(jax.make_jaxpr(task.loss)(params, {}, tiny.random_batch(8)))
    # One is that of the loss, the others are the blocks of both towers.
    assert text.count("remat2[") == (1 if not remat else 4), text.count("remat2[")


def test_the_plan_counts_the_attention_of_every_pass(tiny):
    """Ahead, forward, again in the backward pass, and its five products beside forward's two."""
    config = tiny.config(accumulate=4)
    config.teacher.update(dtype="bfloat16")  # in float32 the program that is counted has attention
    task = make_task(config, "videos")
    per_clip = 3 * 2 * 4.0 * 4**2 * 16  # frames, layers, and 4 patches of width 16
    passes = 1 + 1 + 1 + 5 / 2
    mesh = {"data": 1, "fsdp": 1, "context": 1, "tensor": 1}
    assert estimate.attention_flops(task, mesh) == passes * per_clip * 8


def test_a_tower_that_sees_clips_pools_its_own(tiny):
    """Of four frames, a ViViT of two frames sees two clips, whose directions are averaged."""
    config = tiny.config(frame_pooling="direction")
    config.teacher.update(kind="vivit", num_frames=2, tubelet=2, num_layers=1, features="last")
    config.stages.videos.data.num_frames = 4
    resolve(config)
    task = make_task(config, "videos")
    params = tiny.random_params(set_up(task, make_mesh(task.config.mesh), 1).shapes.params)
    batch = {**tiny.random_batch(2), "frame_mask": np.ones((2, 4), bool)}
    batch["pixels"] = RNG.integers(0, 256, (2, 4, 16, 16, 3), np.uint8)

    @jax.jit
    def run(params, batch):
        halves = to_pixels(batch["pixels"]).reshape(4, 2, 16, 16, 3)
        return task.features(params, batch)[0], make_tower(task.config.teacher).apply(
            {"params": params["vision"]}, halves
        ).pooled

    clip, pooled = run(params, batch)
    pooled = F.normalize(torch.tensor(np.asarray(pooled)), dim=-1).numpy()
    mean = pooled.reshape(2, 2, -1).mean(1)
    np.testing.assert_allclose(clip, mean @ params["contrast"]["clip_kernel"], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher.kind": "vivit", "teacher.num_frames": 2}, r"data\.num_frames: 3 frames do not"),
        ({"stages.videos.batch_size": 1}, r"batch_size: one clip has no other captions"),
        ({"teacher.kind": "dinov2", "text_tower.kind": "siglip"}, r"text_tower\.kind: siglip is"),
        ({"text_tower.kind": "siglip", "teacher.text_layers": 0}, r"teacher\.text_layers: "),
        ({"teacher.text_length": 9}, r"teacher\.text_length: 9 tokens exceed .* = 8"),
        ({"text_tower.num_heads": 5}, r"text_tower\.num_heads: 5 does not divide"),
        ({"stages.videos.contrast.loss": "sigmoid"}, r"text_tower: describes a text tower of its"),
    ],
)
def test_stages_that_cannot_work_are_refused(tiny, changes, message):
    config = tiny.config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=message):
        resolve(config)


def test_towers_of_different_widths_need_maps(tiny):
    task = make_task(tiny.config(projection=0), "videos")
    with pytest.raises(ConfigError, match=r"width 16, captions of 24; set contrast\.projection"):
        jax.eval_shape(task.init, jax.random.key(0))


def test_the_sigmoid_loss_keeps_its_task(tiny):
    config = tiny.config(loss="sigmoid")
    config.text_tower.kind = "siglip"
    task = make_task(resolve(config), "videos")
    assert type(task) is SiglipTask
    assert task.look_ahead({}, {}, {"a": 1}) == {"a": 1}
