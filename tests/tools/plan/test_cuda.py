"""Lowers whole programs with cuDNN's attention for CUDA on a machine without a GPU.

Only two values are replaced: the version of cuDNN that JAX queries, and whether there is a GPU.
"""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elva_jax.config.serialize import freeze
from elva_jax.inference import prefill
from elva_jax.inference.params import Weights
from elva_jax.ops.attention import cudnn
from elva_jax.parallel.mesh import make_mesh
from elva_jax.tasks.registry import make_task
from elva_jax.tools.plan.program import batch_shapes, teacher_shapes
from elva_jax.training.setup import set_up
from elva_jax.training.step import TrainStep
from elva_jax.video.layout import TokenLayout

PACKED, SINGLE = "__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaSoftmax"


@pytest.fixture(autouse=True)
def a_gpu_as_far_as_lowering_goes(monkeypatch):
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91_000)
    half = (jnp.bfloat16, jnp.float16)
    monkeypatch.setattr(
        cudnn, "obstacle", lambda _, dtype, backend="": "" if dtype in half else "type"
    )


@pytest.fixture
def config():
    path = Path(__file__).parents[2] / "training" / "tiny_run.py"
    spec = importlib.util.spec_from_file_location("tiny_run", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.model.update(dtype="bfloat16", remat="full")
    return config


def calls(lowered, name):
    return lowered.as_text().count(f"@{name}(")


@pytest.mark.parametrize("stage", ["video", "sft"])
def test_training_step_lowers_for_cuda(config, stage):
    """video has all losses and the teacher, sft merges into a bucket; both have micro-batches."""
    config.stages[stage].optimizer.accumulate = 2
    if stage == "sft":
        config.stages.sft.merge_buckets = (120,)
    mesh, task = make_mesh(config.mesh), make_task(config, stage)
    setup = set_up(task, mesh, 10)
    step = TrainStep(setup)
    traced = step.trace(setup.shapes, teacher_shapes(task, mesh), batch_shapes(task, mesh))
    lowered = traced.lower(lowering_platforms=("cuda",))
    loops = 2 if stage == "sft" else 1  # loops over layers before and after merging
    for kernel in (PACKED, SINGLE):  # whether rows are packed is known at run time only
        # In the forward pass, and recomputed in the backward pass.
        assert calls(lowered, kernel) == 2 * loops
        assert calls(lowered, kernel + "Backward") == loops


def test_prefill_lowers_for_cuda(config):
    """All programs of prefill are lowered."""
    model = freeze(config).model
    rows, length, patches = 2, 128, 64

    def shape(*dims, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(dims, dtype)

    fields = {name: shape(rows, length, dtype=jnp.int32) for name in TokenLayout._fields}
    layout = TokenLayout(
        **fields
        | {
            "cell": shape(rows, length, 4, dtype=jnp.int32),
            "loss_weight": shape(rows, length, dtype=jnp.float32),
        }
    )
    from elva_jax.tools.analysis.parameters import abstract_parameters

    params = abstract_parameters(model)
    layer = jax.tree.map(lambda leaf: shape(*leaf.shape[1:]), params["decoder"]["layers"])
    table = shape(model.vocab_size, model.hidden_size)
    weights = Weights(params["patch_embed"], table, params["decoder"]["norm"], None, ())
    x, pixels = (
        shape(rows, length, model.hidden_size),
        shape(rows, patches, model.patch_size**2 * 3, dtype=np.uint8),
    )
    inputs = jax.eval_shape(
        lambda layout: prefill.layer_inputs(model, layout, np.zeros(rows, np.int32)), layout
    )

    def lower(program, *arguments):
        return program.trace(model, *arguments).lower(lowering_platforms=("cuda",))

    lower(prefill.embed_program, weights, pixels, layout)
    lower(prefill._merge, x, layout, shape(rows, length, dtype=jnp.float32), 0)
    assert calls(lower(prefill.run_layer, layer, x, inputs), SINGLE) == 1
    last = lower(prefill.run_last_layer, layer, x, inputs)
    assert "stablehlo" in last.as_text()
