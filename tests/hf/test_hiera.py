"""Tests of Hiera for video: the authors' files, features against a PyTorch statement of the paper.

The statement keeps tokens on their grid in time and space, where our tower and the authors' code
keep them by window. Its outputs and those of the package hiera-transformer 0.1.4 differ by 2e-5 at
most.
"""

import json

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
from torch.nn.functional import conv3d, gelu, layer_norm, max_pool2d

from elva_jax import cli
from elva_jax.checkpoints.restore import load_run
from elva_jax.config import schema
from elva_jax.errors import ConfigError, ConvertError
from elva_jax.hf import hiera
from elva_jax.hf.load import is_hf_source
from elva_jax.models.build import parameter_shapes, vision_tower

ARGUMENTS = {
    "input_size": [4, 64, 64],
    "embed_dim": 8,
    "num_heads": 1,
    "stages": [1, 2, 2, 3],
    "q_stride": [1, 2, 2],
    "mask_unit_size": [1, 8, 8],
    "patch_kernel": [3, 7, 7],
    "patch_stride": [2, 4, 4],
    "patch_padding": [1, 3, 3],
    "sep_pos_embed": True,
}


def random_state(arguments, seed=0):
    """Tensors of a classifier with the authors' names."""
    generator = torch.Generator().manual_seed(seed)
    width, (frames, side, _) = arguments["embed_dim"], arguments["input_size"]
    shapes = {
        "pos_embed_spatial": (1, (side // 4) ** 2, width),
        "pos_embed_temporal": (1, frames // 2, width),
        "patch_embed.proj.weight": (width, 3, 3, 7, 7),
        "patch_embed.proj.bias": (width,),
        "head.projection.weight": (5, 8 * width),
    }
    starts = np.cumsum(arguments["stages"])[:-1].tolist()
    for i in range(sum(arguments["stages"])):
        wide = 2 * width if i in starts else width
        linear = {"attn.qkv": (3 * wide, width), "attn.proj": (wide, wide)}
        linear |= {"mlp.fc1": (4 * wide, wide), "mlp.fc2": (wide, 4 * wide)}
        if i in starts:
            linear["proj"] = (wide, width)
        for name, shape in linear.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
        for name, size in (("norm1", width), ("norm2", wide)):
            shapes |= {f"blocks.{i}.{name}.{part}": (size,) for part in ("weight", "bias")}
        width = wide
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    draw = {name: torch.randn(*shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    return {name: x + ("norm" in name and "weight" in name) for name, x in draw.items()}


def reference(state, arguments, pixels):
    """Outputs of all blocks [n, T, Y, X, C], and the pooled feature."""

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x, name):
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return layer_norm(x, x.shape[-1:], weight, bias, 1e-6)

    def pooled(x):
        flat = max_pool2d(x.flatten(0, 1).permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
        return flat.reshape(*x.shape[:2], *flat.shape[1:])

    def windows(x, side):
        """[n, sequences, tokens, C]; side 0: all tokens are one sequence."""
        n, t, y, w, c = x.shape
        if not side:
            return x.reshape(n, 1, -1, c)
        cut = x.reshape(n, t, y // side, side, w // side, side, c).transpose(3, 4)
        return cut.reshape(n, -1, side * side, c)

    def unwindowed(x, side, shape):
        if not side:
            return x.reshape(shape)
        n, t, y, w, c = shape
        cut = x.reshape(n, t, y // side, w // side, side, side, c).transpose(3, 4)
        return cut.reshape(shape)

    video = torch.from_numpy((((pixels + 1) / 2 - 0.45) / 0.225).astype(np.float32))
    weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    stride, padding = (2, 4, 4), (1, 3, 3)
    x = conv3d(video.permute(0, 4, 1, 2, 3), weight, bias, stride, padding).permute(0, 2, 3, 4, 1)
    x = x + state["pos_embed_spatial"].reshape(1, 1, *x.shape[2:])
    x = x + state["pos_embed_temporal"].reshape(1, -1, 1, 1, x.shape[-1])
    heads, out = arguments["num_heads"], []
    starts = np.cumsum(arguments["stages"])[:-1].tolist()
    for i in range(sum(arguments["stages"])):
        stage, at = sum(i >= start for start in starts), f"blocks.{i}."
        first = i in starts
        heads *= 2 if first else 1
        # The first block of a stage still attends as the stage before it.
        side = (8, 4, 0, 0)[stage] if not first else (None, 8, 4, 0)[stage]
        y = norm(x, f"{at}norm1")
        q, k, v = linear(y, f"{at}attn.qkv").chunk(3, dim=-1)
        if first:
            x, q = pooled(linear(y, f"{at}proj")), pooled(q)
        parts = (windows(q, side // 2 if first else side), windows(k, side), windows(v, side))
        q, k, v = (z.unflatten(-1, (heads, -1)).transpose(2, 3) for z in parts)
        y = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
        y = unwindowed(y.transpose(2, 3).flatten(3), side // 2 if first else side, x.shape)
        x = x + linear(y, f"{at}attn.proj")
        y = norm(x, f"{at}norm2")
        x = x + linear(gelu(linear(y, f"{at}mlp.fc1")), f"{at}mlp.fc2")
        out.append(x)
    return out, norm(x.mean(dim=(1, 2, 3)), "norm")


def write(folder, arguments, state):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(arguments))
    tensors = {name: value.contiguous() for name, value in state.items()}
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    "change",
    [{}, {"input_size": [2, 96, 96], "num_heads": 2, "embed_dim": 12, "stages": [2, 3, 2, 2]}],
    ids=str,
)
def test_features_equal_a_direct_statement(tmp_path, config_of, features_of, change):
    arguments = {**ARGUMENTS, **change}
    state = random_state(arguments)
    folder = write(tmp_path / "hiera", arguments, state)
    assert config_of(folder).teacher.kind == "hiera"
    t, side, _ = arguments["input_size"]
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, t, side, side, 3)).astype(np.float32)
    outputs, pooled = reference(state, arguments, pixels)
    got = features_of(folder, pixels)
    assert got.last.shape == (2, t // 2, (side // 32) ** 2, 8 * arguments["embed_dim"])
    for ours, theirs in ((got.penultimate, outputs[-2]), (got.last, outputs[-1])):
        np.testing.assert_allclose(ours, theirs.flatten(2, 3), atol=1e-4, rtol=0)
    np.testing.assert_allclose(got.pooled, pooled, atol=1e-4, rtol=0)


def test_files_of_a_masked_autoencoder(tmp_path, config_of, params_of):
    """Its norm has another name, and its decoder is left out; a published .pth is nested."""
    state = random_state(ARGUMENTS)
    for part in ("weight", "bias"):
        state[f"encoder_norm.{part}"] = state.pop(f"norm.{part}")
    extra = {"mask_token": torch.ones(1, 1, 4), "decoder_blocks.0.norm1.weight": torch.ones(4)}
    folder = write(tmp_path / "mae", ARGUMENTS, {**state, **extra})
    assert is_hf_source(folder)
    params = params_of(folder, kind="teacher")["vision"]
    np.testing.assert_array_equal(params["post_norm_scale"], state["encoder_norm.weight"])
    (folder / "model.safetensors").unlink()
    torch.save({"model_state": state}, folder / "mae_hiera_tiny.pth")
    assert is_hf_source(folder)
    with pytest.raises(ConvertError, match="--allow-pickle"):
        params_of(folder, kind="teacher")
    words = ["convert", "import", str(folder), str(tmp_path / "out"), "--allow-pickle"]
    assert cli.main(words) == 0
    imported = load_run(tmp_path / "out", kind="teacher")
    assert (imported.config.teacher.kind, imported.config.teacher.stages) == ("hiera", (1, 2, 2, 3))
    jax.tree.map(np.testing.assert_array_equal, imported.params["vision"], params)


def test_the_published_model_has_its_shapes():
    """facebook/hiera_base_16x224: 8 x 7 x 7 features of width 768 for 16 frames."""
    published = {
        **ARGUMENTS,
        "input_size": [16, 224, 224],
        "embed_dim": 96,
        "stages": [2, 3, 16, 3],
    }
    run = schema.base()
    run.teacher.update(hiera.read_config(published, "here"))
    assert (run.teacher.hidden_size, run.teacher.patch_size, run.teacher.num_layers) == (
        768,
        32,
        24,
    )
    out, variables = jax.eval_shape(
        vision_tower(run).init_with_output,
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, 16, 224, 224, 3), np.float32),
    )
    assert out.last.shape == (1, 8, 49, 768)
    # The authors' class has this many without its head.
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 50_784_960


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q_stride": [2, 2]}, r"q_stride of its config.json is \[2, 2\]; the tower supports only"),
        ({"sep_pos_embed": False}, "sep_pos_embed of its config.json is False"),
        ({"patch_stride": [2, 4]}, "patch_stride of its config.json is .* list of 3 numbers"),
        ({"stages": [1, 2, 2, 0]}, "stages of its config.json: an entry=0: must be at least 1"),
        ({"input_size": [4, 64, 96]}, "must be square"),
        ({"input_size": None}, "lacks input_size"),
    ],
    ids=str,
)
def test_others_are_refused(change, message):
    given = {key: value for key, value in {**ARGUMENTS, **change}.items() if value is not None}
    with pytest.raises(ConvertError, match=message):
        hiera.read_config(given, "here")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"stages": (1, 2, 3)}, "stages"),
        ({"num_heads": 4}, "num_heads"),
        ({"tubelet": 3}, "num_fr"),
    ],
    ids=str,
)
def test_a_configuration_that_is_no_hiera(change, key):
    run = schema.base()
    run.teacher.update({**hiera.read_config(ARGUMENTS, "here"), **change})
    with pytest.raises(ConfigError, match=f"teacher.{key}"):
        parameter_shapes(run, "vision")
