"""Tests of Qwen2 and Llama folders: our logits equal those of transformers; unsupported models."""

import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen2Model

from elva_jax.errors import ConvertError
from elva_jax.hf import load
from elva_jax.hf.tensor_store import open_store
from elva_jax.hf.write_store import write_store

TINY = dict(
    vocab_size=83,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    tie_word_embeddings=False,
)
IDS = np.random.default_rng(0).integers(0, 83, (2, 24))


def rope(kind, **values):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **values}}


@pytest.fixture
def save(tmp_path, randomise):
    """`save(change, ...)` returns the folder of a random model, and the model."""

    def write(change, kind=(Qwen2Config, Qwen2ForCausalLM), dtype=torch.float32, **options):
        model = randomise(kind[1](kind[0](**{**TINY, **change}, attn_implementation="eager"))).to(
            dtype
        )
        model.save_pretrained(tmp_path / "hf", **options)
        return tmp_path / "hf", model

    return write


def theirs(model):
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(IDS)).logits.numpy()


LLAMA = (LlamaConfig, LlamaForCausalLM)
LLAMA3 = rope(  # of the four planes of a head, one is kept, two on the ramp, one interpolated
    "llama3",
    factor=8.0,
    original_max_position_embeddings=64,
    low_freq_factor=0.05,
    high_freq_factor=2.0,
)


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ({}, {}),
        ({"num_key_value_heads": 1, "tie_word_embeddings": True}, {"max_shard_size": "20kB"}),
        ({"num_key_value_heads": 4, "num_attention_heads": 8, "rms_norm_eps": 1e-3}, {}),
        ({"head_dim": 16, "num_hidden_layers": 1}, {}),
        (rope("linear", factor=2.0), {}),
        (rope("dynamic", factor=2.0), {}),
        (rope("yarn", factor=4.0, original_max_position_embeddings=16), {}),
        (LLAMA3, {}),
        ({**LLAMA3, "tie_word_embeddings": True}, {"kind": LLAMA}),
        (rope("default", rope_theta=1_000_000.0), {"dtype": torch.bfloat16}),
        (
            {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 3},
            {"dtype": torch.float16},
        ),
        ({}, {"kind": LLAMA}),
        ({"tie_word_embeddings": True, "num_key_value_heads": 1}, {"kind": LLAMA}),
    ],
    ids=str,
)
def test_logits_equal_transformers(save, logits_of, change, options):
    """Full and half precision, shards, every RoPE scaling, and an unused sliding window."""
    folder, model = save(change, **options)
    # Load the model again, because .to(bfloat16) has also rounded the RoPE frequencies.
    wanted = theirs(
        type(model).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    )
    assert np.abs(wanted).max() > 1
    np.testing.assert_allclose(logits_of(folder, IDS), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "old",
    [
        {"rope_theta": 500.0},
        {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
        {
            "rope_theta": 500.0,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 2.0,
                "original_max_position_embeddings": 32,
            },
        },
    ],
    ids=str,
)
def test_config_files_of_older_transformers_are_read(save, edit, logits_of, old):
    folder, _ = save({})
    edit(folder, rope_parameters=None, layer_types=None, **old)
    model = Qwen2ForCausalLM.from_pretrained(folder, attn_implementation="eager")
    np.testing.assert_allclose(logits_of(folder, IDS), theirs(model), atol=1e-4, rtol=0)


def test_a_model_without_its_head_has_names_without_prefix(tmp_path, randomise, logits_of):
    model = randomise(Qwen2Model(Qwen2Config(**{**TINY, "tie_word_embeddings": True})))
    model.save_pretrained(tmp_path)
    assert "embed_tokens.weight" in open_store(tmp_path).names()
    whole = Qwen2ForCausalLM(model.config).eval()
    whole.model.load_state_dict(model.state_dict())
    np.testing.assert_allclose(logits_of(tmp_path, IDS), theirs(whole), atol=1e-4, rtol=0)


def test_llama_has_zero_biases(save, logits_of, config_of, params_of):
    folder, model = save({}, kind=LLAMA)
    config = config_of(folder)
    assert not config.model.attention_bias
    config.model.attention_bias = True
    assert not np.any(params_of(folder, config)["elva"]["decoder"]["layers"]["q_proj"]["bias"])
    np.testing.assert_allclose(logits_of(folder, IDS, config), theirs(model), atol=1e-4, rtol=0)


def test_a_tied_head_fills_one_that_is_not_tied(save, logits_of, config_of):
    folder, model = save({"tie_word_embeddings": True})
    config = config_of(folder)
    config.model.tie_embeddings = False
    np.testing.assert_allclose(logits_of(folder, IDS, config), theirs(model), atol=1e-4, rtol=0)


@pytest.mark.parametrize("tied", [False, True])
def test_added_vocabulary_rows_are_the_mean_of_the_others(save, config_of, params_of, tied):
    folder, model = save({"tie_word_embeddings": tied})
    config = config_of(folder)
    config.model.vocab_size = 90
    params = params_of(folder, config)["elva"]["decoder"]
    tables = {"embed_tokens": model.model.embed_tokens.weight}
    if not tied:
        tables["lm_head"] = model.lm_head.weight
        params["lm_head"] = params["lm_head"].T
    for name, value in tables.items():
        value = value.detach().numpy()
        np.testing.assert_array_equal(params[name][:83], value)
        np.testing.assert_allclose(params[name][83:], np.tile(value.mean(0), (7, 1)), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_parameters_have_the_requested_dtype(save, params_of, dtype):
    folder, model = save({}, dtype=torch.bfloat16)
    kernel = params_of(folder, dtype=dtype)["elva"]["decoder"]["layers"]["down_proj"]["kernel"]
    assert kernel.dtype == dtype
    wanted = np.stack(
        [layer.mlp.down_proj.weight.detach().float().numpy().T for layer in model.model.layers]
    )
    np.testing.assert_array_equal(kernel.astype(np.float32), wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mistral"}, r"model_type 'mistral'; one of qwen2, llama, elva, siglip"),
        ({"model_type": None}, "model_type None"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"num_hidden_layers": None}, "lacks num_hidden_layers"),
        (
            {
                "use_sliding_window": True,
                "sliding_window": 8,
                "layer_types": None,
                "max_window_layers": 1,
            },
            "uses a sliding window of 8 tokens",
        ),
        (
            {
                "use_sliding_window": True,
                "sliding_window": 8,
                "layer_types": ["full_attention", "sliding_attention"],
            },
            "if no sequence will be longer, set use_sliding_window to false",
        ),
        (
            rope("longrope", factor=8.0),
            "RoPE scaling 'longrope' is not one of default, linear, dynamic, yarn, llama3",
        ),
        (rope("llama3", factor=8.0), "llama3 lacks original_max_position_embeddings, low_freq"),
        (rope("yarn", factor=4.0, low_freq_factor=1.0), "sets low_freq_factor, which"),
        (rope("yarn", factor=4.0, beta_fast=64), "sets beta_fast to 64"),
        (rope("yarn", factor=4.0, attention_factor=1.5), "sets attention_factor to 1.5"),
        (rope("yarn", factor=4.0, truncate=False), "sets truncate to False"),
        (rope("default", mrope_section=[2, 1, 1]), "sets mrope_section"),
        (rope("default", partial_rotary_factor=0.5), "partial_rotary_factor"),
        ({"model_type": "llama", "attention_bias": True}, "has attention_bias"),
        ({"model_type": "llama", "mlp_bias": True}, "has mlp_bias"),
    ],
    ids=str,
)
def test_features_that_the_decoder_lacks_are_refused(save, edit, config_of, change, message):
    folder, _ = save({})
    edit(folder, **change)
    with pytest.raises(ConvertError, match=message):
        config_of(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"num_heads": 8, "head_dim": 4},
            r"num_heads is 4, the run has model.num_heads = 8; .*head_dim is 8, the run has"
            r" model.head_dim = 4",
        ),
        ({"rope_theta": 1e6}, r"rope_theta is 10000.0, the run has model.rope_theta = 1000000.0"),
        ({"rms_norm_eps": 1e-5}, r"rms_norm_eps is 1e-06"),
        (
            {"tie_embeddings": True},
            "its head is not tied to the embedding; set model.tie_embeddings to False",
        ),
        (
            {"intermediate_size": 40},
            r"down_proj.weight is \[32, 48\], expected \[32, 40\] for \{\} = 0 … 2",
        ),
        ({"num_layers": 2}, r"model.layers.2.mlp.gate_proj.weight \[48, 32\] is unexpected"),
        ({"num_layers": 4}, r"model.layers.3.mlp.gate_proj.weight \[48, 32\] is missing"),
        ({"attention_bias": False}, r"q_proj.bias \[32\] is unexpected"),
        ({"vocab_size": 80}, r"model.embed_tokens.weight is \[83, 32\], expected \[80, 32\]"),
    ],
    ids=str,
)
def test_run_that_contradicts_the_weights_is_refused(save, config_of, params_of, change, message):
    folder, _ = save({})
    config = config_of(folder)
    config.model.update(change)
    with pytest.raises(ConvertError, match=message) as caught:
        params_of(folder, config)
    assert "\n" not in str(caught.value)


def changed(folder, target, change):
    """A copy of a folder with changed tensors."""
    opened = open_store(folder)
    tensors = {name: np.array(opened.read(name)) for name in opened.names()}
    change(tensors)
    write_store(target, tensors.items(), files={"config.json": folder / "config.json"})
    return target


def test_damaged_weights_are_refused(save, params_of, tmp_path):
    folder, _ = save({})
    name = "model.layers.1.mlp.up_proj.weight"

    def refused(label, change, message):
        with pytest.raises(ConvertError, match=message):
            params_of(changed(folder, tmp_path / label, change))

    refused(
        "nan",
        lambda t: t[name].__setitem__((3, 4), np.nan),
        rf"model\.safetensors: {name} holds values that are not finite",
    )
    refused(
        "int", lambda t: t.update({name: t[name].astype(np.int8)}), rf"{name} is int8, not a float"
    )
    refused("lost", lambda t: t.pop(name), rf"{name} \[48, 32\] is missing")
    refused("more", lambda t: t.update(more=t[name]), r"more \[48, 32\] is unexpected")


def test_untied_head_that_is_declared_tied_is_refused(save, edit, params_of, logits_of, tmp_path):
    folder, model = save({})
    edit(folder, tie_word_embeddings=True)
    with pytest.raises(
        ConvertError,
        match=r"lm_head\.weight differs from the embedding, but config\.json says"
        r" tie_word_embeddings",
    ):
        params_of(folder)
    same = changed(
        folder,
        tmp_path / "same",
        lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"]}),
    )
    model.lm_head.weight = model.model.embed_tokens.weight
    np.testing.assert_allclose(logits_of(same, IDS), theirs(model), atol=1e-4, rtol=0)


def test_tower_in_place_of_a_decoder_is_refused(save, config_of):
    folder, _ = save({})
    with pytest.raises(ConvertError, match="but a vision tower is wanted here"):
        load.load_params(folder, {}, config_of(folder), subtree="vision")


EIGHT = """
import sys, json, jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from elva_jax.config import schema
from elva_jax.hf import load
from elva_jax.hf.tensor_store import open_store
from elva_jax.models.build import parameter_shapes
config = schema.base()
config.model.update(load.read_config(open_store(sys.argv[1]).config, "here")[1])
mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("layers", "fsdp"))
specs = {"kernel": P(None, None, "fsdp"), "embed_tokens": P(None, ("layers", "fsdp"))}
specs["lm_head"] = P(("fsdp", "layers"))
def target(path, shape):
    sharding = NamedSharding(mesh, specs.get(path.rpartition("/")[2], P()))
    return jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding)
targets = {
    path: target(path, shape)
    for path, shape in parameter_shapes(config, "elva").items() if "decoder" in path
}
params = load.load_params(sys.argv[1], targets, config).params
assert all(leaf.sharding == targets[path].sharding for path, leaf in params.items())
assert params["elva/decoder/layers/q_proj/kernel"].addressable_shards[0].data.shape == (3, 32, 8)
assert params["elva/decoder/lm_head"].addressable_shards[0].data.shape == (4, 83)
np.savez(sys.argv[2], **{path: np.asarray(leaf) for path, leaf in params.items()})
"""


def test_every_device_reads_only_its_shard(save, params_of, tmp_path):
    folder, _ = save({})
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    subprocess.run(
        [sys.executable, "-c", EIGHT, folder, tmp_path / "out.npz"], env=environment, check=True
    )
    whole = params_of(folder)["elva"]["decoder"]
    for path, value in np.load(tmp_path / "out.npz").items():
        wanted = whole
        for key in path.split("/")[2:]:
            wanted = wanted[key]
        np.testing.assert_array_equal(value, wanted, err_msg=path)
