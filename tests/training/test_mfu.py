"""Tests of model FLOPs against the numbers of parameters and of attended pairs."""

from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest

from elva_jax.config.load import load
from elva_jax.config.serialize import freeze
from elva_jax.models import flops
from elva_jax.parallel.mesh import make_mesh
from elva_jax.tasks.registry import make_task
from elva_jax.training import mfu
from elva_jax.training.metrics import MergeMetrics
from elva_jax.training.setup import set_up
from elva_jax.training.task import Content, TrainedMatrices
from elva_jax.utils.trees import flatten_paths
from elva_jax.video.layout import Kind


@pytest.fixture
def parameters(config):
    """Labels and shapes of a stage; paths that contain the word `frozen` are frozen."""
    return partial(labels_and_shapes, config)


def labels_and_shapes(config, stage, frozen="nothing"):
    shapes = flatten_paths(
        nn.meta.unbox(jax.eval_shape(make_task(config, stage).init, jax.random.key(0)))
    )
    return {path: "frozen" if frozen in path else "adamw" for path in shapes}, shapes


def flops_of(config, stage, parameters, content, metrics):
    return make_task(config, stage).flops(content, metrics, TrainedMatrices(*parameters))


def attended(layout):
    """Number of pairs of query and key by the mask: causal, same example, no padding."""
    total = 0
    for kind, segment in zip(layout.kind, layout.segment, strict=True):
        real = kind != Kind.PAD
        same = (segment[:, None] == segment[None, :]) & real[:, None] & real[None, :]
        total += int(np.tril(same).sum())
    return total


def test_pairs_of_a_frame_count_in_both_directions(config, tiny_run):
    layout = tiny_run.random_batch(config, "sft")["layout"]
    config.model.update(frame_attention="bidirectional", attention="xla")
    content = make_task(config, "sft").content({"layout": layout})
    frame = layout.frame
    same = (frame[:, :, None] == frame[:, None]) & (frame[:, :, None] >= 0)
    assert content.pairs == attended(layout) + np.triu(same, 1).sum()


def test_decoder_flops_are_three_products_per_weight_and_token(config, tiny_run, parameters):
    batch = tiny_run.random_batch(config, "sft")
    _, shapes = parameters("sft")
    content = make_task(config, "sft").content(batch)
    tokens = int((batch["layout"].kind != Kind.PAD).sum())
    visual = sum(
        int((batch["layout"].kind == kind).sum()) for kind in (Kind.FRAME, Kind.PATCH, Kind.LINE)
    )
    assert (content.tokens, content.visual, content.pairs) == (
        tokens,
        visual,
        attended(batch["layout"]),
    )
    # Each example has two frames.
    assert content.frames == 2 * sum(
        len(np.unique(row[row > 0])) for row in batch["layout"].segment
    )

    c = config.model
    inner = sum(
        leaf.size
        for path, leaf in shapes.items()
        if "/decoder/layers" in path and leaf.ndim > 2 and path.endswith("kernel")
    )
    head = c.vocab_size * c.hidden_size
    attention = c.num_layers * 4 * c.num_heads * c.head_dim * attended(batch["layout"])
    expected = 6 * tokens * (inner + head) + 3 * attention
    whole = flops_of(config, "sft", parameters("sft"), content, {})
    front = sum(
        leaf.size
        for path, leaf in shapes.items()
        if "patch_embed" in path and path.endswith("kernel")
    )
    assert expected < whole < expected + 6 * (content.patches + visual) * front + 1e6

    half = flops_of(
        config,
        "sft",
        parameters("sft"),
        content,
        {
            "merge/kept_mean": 0.5,
            "merge": (MergeMetrics(kept=0.25, forced=0, overflow=0, padding=0),),
        },
    )
    left, end = tokens - visual / 2, tokens - visual * 0.75
    assert whole - half == pytest.approx(
        6 * inner * (tokens - left)
        + 6 * head * (tokens - end)
        + 3 * attention * (1 - (left / tokens) ** 2)
    )


def test_frozen_parameters_have_no_gradient_flops(config, tiny_run, parameters):
    content, c = (
        make_task(config, "sft").content(tiny_run.random_batch(config, "sft")),
        config.model,
    )
    all_of_it, decoder, front = (
        flops_of(config, "sft", parameters("sft", frozen), content, {})
        for frozen in ("nothing", "decoder", "patch_embed")
    )
    three_fronts = 3 * (all_of_it - front) / 2
    # Attention has no parameters.
    attention = 3 * c.num_layers * 4 * c.num_heads * c.head_dim * content.pairs
    assert all_of_it - decoder == pytest.approx((all_of_it - three_fronts - attention) / 3)


def test_adapters_omit_the_gradients_of_the_adapted_matrices(config, tiny_run, parameters):
    content = make_task(config, "sft").content(tiny_run.random_batch(config, "sft"))
    frozen = flops_of(config, "sft", parameters("sft", "elva"), content, {})
    config.stages.sft.optimizer.lora.update(rank=3, targets=("q_proj", "^down"))
    labels, shapes = parameters("sft", "elva")
    factors = {path for path in shapes if "_lora/" in path}
    assert len(factors) == 4
    adapted = flops_of(
        config, "sft", (labels | dict.fromkeys(factors, "adamw"), shapes), content, {}
    )
    c = config.model
    sizes = 3 * (c.hidden_size + c.num_heads * c.head_dim) + 3 * (
        c.intermediate_size + c.hidden_size
    )
    assert adapted - frozen == pytest.approx(3 * 2 * content.tokens * c.num_layers * sizes)


def test_guided_and_teacher_stages_count_the_tower(config, tiny_run, parameters):
    content = make_task(config, "sft").content(tiny_run.random_batch(config, "video"))
    alone = flops_of(config, "sft", parameters("sft"), content, {})
    assert flops_of(config, "video", parameters("video"), content, {}) > alone
    batch = {"frame_mask": np.array([[True, False], [True, True]]), "mask": np.ones((2, 5), bool)}
    content = make_task(config, "teacher").content(batch)
    assert (content.tokens, content.frames) == (10, 3)
    assert flops_of(config, "teacher", parameters("teacher"), content, {}) > 0


def test_encoders_of_merv_run_forward_alone(config_dir):
    """Two clips of a MERV whose projectors and fusion are trained, or frozen as well."""
    config = freeze(load(f"{config_dir}/merv.py:llm=tiny"))
    front = flops.merv_front(config.model)
    content = Content(patches=2 * config.model.frame_patches)
    trained, frozen = (
        flops_of(config, "finetune", labels_and_shapes(config, "finetune", words), content, {})
        for words in ("tower_", "patch_embed")
    )
    encoders = sum(front.encoders.values())
    assert trained == pytest.approx(2 * (encoders + 2 * front.projectors + 3 * front.fusion))
    assert frozen == pytest.approx(2 * (encoders + front.projectors + front.fusion))


def test_utilization_is_flops_per_time_and_peak(config, tiny_run, parameters):
    batch = tiny_run.random_batch(config, "sft")
    assert mfu.peak_flops(config) is None
    config.log.peak_tflops = 2.0
    speed = mfu.Speed(set_up(make_task(config, "sft"), make_mesh(config.mesh), 10))
    for _ in range(3):
        speed.add(batch)
    out = speed.report({"seconds": 0.5}, {})
    content = make_task(config, "sft").content(batch)
    work = flops_of(config, "sft", parameters("sft"), content + content + content, {}) / 3
    assert out["tokens_per_second"] == pytest.approx(content.tokens / 0.5)
    assert out["mfu"] == pytest.approx(work / 0.5 / (2e12 * jax.device_count()))
    assert speed.report({}, {}).keys() <= {"memory_gib"}
