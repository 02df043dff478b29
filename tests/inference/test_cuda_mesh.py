"""Inference on a mesh lowers for CUDA with cuDNN's attention, on a machine without a GPU.

Real shapes, over the devices of an abstract mesh; nothing is allocated. Only three values are
replaced: the version of cuDNN that JAX queries, whether there is a GPU, and JAX's refusal of
abstract devices for a kernel that asks for them only outside of `shard_map`.
"""

import dataclasses
import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from elva_jax.config.mesh_axes import AXES
from elva_jax.inference import decode, params, prefill, scoring
from elva_jax.inference.kv_cache import PrefixCache, SuffixCache
from elva_jax.inference.sampling import GREEDY
from elva_jax.models.elva import Elva, dummy_inputs
from elva_jax.ops.attention import cudnn
from elva_jax.parallel.sharding import activation_rules, parameter_shardings
from elva_jax.tools.analysis.paper import QWEN2_1_5B, QWEN2_7B

SIZES = {"data": 2, "fsdp": 1, "context": 1, "tensor": 4}
MESH = AbstractMesh(
    tuple(SIZES[axis] for axis in AXES), AXES, axis_types=(AxisType.Auto,) * len(AXES)
)
ROWS, LENGTH = 2, 5120


@pytest.fixture(autouse=True)
def a_gpu_as_far_as_lowering_goes(monkeypatch):
    from jax._src import dispatch
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(dispatch, "prim_requires_devices_during_lowering", set())
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91_000)
    half = (jnp.bfloat16, jnp.float16)
    monkeypatch.setattr(
        cudnn, "obstacle", lambda _, dtype, backend="": "" if dtype in half else "type"
    )


WHOLE = PartitionSpec()


def shape(*dims, dtype=jnp.bfloat16, spec=WHOLE):
    return jax.ShapeDtypeStruct(dims, dtype, sharding=NamedSharding(MESH, spec))


def by_rows(*dims, dtype=jnp.bfloat16):
    return shape(ROWS, *dims, dtype=dtype, spec=PartitionSpec("data"))


class Shapes:
    """Arguments of the programs of one model, split as on a real mesh."""

    def __init__(self, config):
        # Two layers: the others are the same.
        self.config = config = dataclasses.replace(
            config, dtype="bfloat16", attention="cudnn", num_layers=2
        )
        self.sizes = {"heads": config.num_heads, "kv_heads": config.num_kv_heads}
        anywhere = dataclasses.replace(config, attention="xla")
        self.boxed = jax.eval_shape(Elva(anywhere).init, jax.random.key(0), *dummy_inputs(config))
        self.boxed = self.boxed["params"]
        plain = nn.meta.unbox(self.boxed)
        where = parameter_shardings(self.boxed, MESH, self.sizes)

        def leaf(path, value, sharding):
            keep = "scale" in jax.tree_util.keystr(path) or "patch_embed" in path[0].key
            return shape(
                *value.shape, dtype=value.dtype if keep else jnp.bfloat16, spec=sharding.spec
            )

        tree = jax.tree_util.tree_map_with_path(leaf, plain, where)
        decoder = tree["decoder"]

        def nth(stack):
            spec = PartitionSpec(*stack.sharding.spec[1:])
            return shape(*stack.shape[1:], dtype=stack.dtype, spec=spec)

        self.weights = params.Weights(
            visual=tree["patch_embed"],
            embed_tokens=decoder["embed_tokens"],
            norm=decoder["norm"],
            lm_head=decoder.get("lm_head"),
            layers=(jax.tree.map(nth, decoder["layers"]),) * config.num_layers,
        )
        heads = "tensor" if config.num_kv_heads % SIZES["tensor"] == 0 else None
        self.heads = PartitionSpec("data", heads)

    def cache(self, *dims):
        c = self.config
        return shape(ROWS, c.num_kv_heads, *dims, c.head_dim, spec=self.heads)

    def prefix(self):
        cache = PrefixCache(self.cache(LENGTH), self.cache(LENGTH), by_rows(LENGTH, dtype=bool))
        return (cache,) * self.config.num_layers

    def state(self, slots=64):
        suffix = SuffixCache(self.cache(1, slots), self.cache(1, slots))
        number = by_rows(1, dtype=jnp.int32)
        scalar = shape(dtype=jnp.int32)
        return decode.DecodeState(
            suffix=(suffix,) * self.config.num_layers,
            filled=by_rows(1, slots, dtype=bool),
            repetition_mask=by_rows(1, 0, dtype=bool),
            slot=scalar,
            position=number,
            token=number,
            alive=by_rows(1, dtype=bool),
            stretch=by_rows(dtype=jnp.int32),
            step=scalar,
        )

    def lower(self, program, *arguments):
        """A program's text for CUDA."""
        rules = {**dict(activation_rules(self.boxed, MESH, self.sizes)), "seq": None}
        with jax.sharding.use_abstract_mesh(MESH), nn.logical_axis_rules(tuple(rules.items())):
            traced = jax.jit(program).trace(*arguments)
        return traced.lower(lowering_platforms=("cuda",)).as_text()


@pytest.fixture(scope="module", params=["1_5b", "7b"])
def shapes(request):
    return Shapes({"1_5b": QWEN2_1_5B, "7b": QWEN2_7B}[request.param])


def split_over(text):
    """The axes over which a program's own constraints split what it computes."""
    lines = [line for line in text.splitlines() if "sharding_constraint" in line]
    return set(re.findall(r'"([a-z]+)"', "".join(lines)))


def queries_of_a_device(text):
    """The shape of the queries in each call of cuDNN's attention."""
    found = re.findall(r"@__cudnn\$fmhaSoftmax\(.*?: \(tensor<([0-9x]+)xbf16>", text)
    return [[int(size) for size in each.split("x")] for each in found]


def test_every_device_runs_the_kernel_for_its_own_rows_and_heads(shapes):
    c, angle = shapes.config, by_rows(LENGTH, shapes.config.head_dim // 2, dtype=jnp.float32)
    inputs = prefill.LayerInputs(angle, angle, by_rows(LENGTH, dtype=jnp.int32))
    text = shapes.lower(
        partial(prefill.run_layer, c),
        shapes.weights.layers[0],
        by_rows(LENGTH, c.hidden_size),
        inputs,
    )
    # 1.5B has two key heads, which four devices cannot split.
    heads = 28 // SIZES["tensor"] if c.num_heads == 28 else 12
    assert queries_of_a_device(text) == [[ROWS // SIZES["data"], LENGTH, heads, 128]]
    assert {"data", "tensor"} <= split_over(text)


def test_decoding_and_scoring_are_split(shapes):
    c = shapes.config
    sampling = GREEDY.params(c.vocab_size, (0,))

    def number(*dims):
        return by_rows(1, *dims, dtype=jnp.int32)

    def advance(weights, prefix, state):
        return decode.advance(c, weights, prefix, state, 16, 16, sampling)

    def feed(weights, prefix, state, text, length):
        return decode.feed(c, weights, prefix, state, text, length, sampling)

    ready = (shapes.weights, shapes.prefix())
    stretch = by_rows(dtype=jnp.int32)
    trees = scoring.Trees(*map(number, (64, 64, 64, 16)), stretch)
    programs = {
        "advance": shapes.lower(advance, *ready, shapes.state()),
        "feed": shapes.lower(feed, *ready, shapes.state(), number(32), number()),
        "scores": shapes.lower(partial(scoring.branch_scores, c), *ready, trees, number(16)),
    }
    assert "stablehlo.while" in programs["advance"]
    for name, text in programs.items():
        assert {"data", "tensor"} <= split_over(text), name
