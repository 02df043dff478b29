"""Weights that are read tensor by tensor are those of the whole tree, bit by bit."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from elva_jax import testing
from elva_jax.checkpoints import handlers
from elva_jax.checkpoints.restore import SavedRun
from elva_jax.checkpoints.save import save_weights
from elva_jax.config.serialize import freeze
from elva_jax.errors import CheckpointError, ConvertError
from elva_jax.evaluation.weights import HashedWeights, weights_hash
from elva_jax.hf.export import save_pretrained
from elva_jax.hf.open_model import open_run_or_folder, opening_source
from elva_jax.inference import load_weights as module
from elva_jax.inference.load import load_source
from elva_jax.inference.load_weights import compute_type, load_weights, watched
from elva_jax.inference.model import ElvaModel
from elva_jax.inference.params import unstack_layers
from elva_jax.inference.quantization import quantize_weights
from elva_jax.ops import lora
from elva_jax.utils.trees import flatten_paths, unflatten_paths

ALPHA = 8.0


@pytest.fixture(scope="module")
def config():
    config = testing.tiny_config(dtype="bfloat16")
    config.stages.video.optimizer.lora.alpha = ALPHA
    return freeze(config)


@pytest.fixture(scope="module")
def params(config):
    """Random float32 weights, half of whose matrices have LoRA factors."""
    rng = np.random.default_rng(0)
    flat = {
        path: rng.standard_normal(leaf.shape, np.float32)
        for path, leaf in flatten_paths(testing.random_params(config.model)).items()
    }
    for name in ("q_proj", "down_proj"):
        kernel = flat[f"decoder/layers/{name}/kernel"]
        (a, b), (layers, inputs, outputs) = (
            [lora.factor_of(f"decoder/layers/{name}/kernel", each) for each in "ab"],
            kernel.shape,
        )
        flat[a] = rng.standard_normal((layers, inputs, 4), np.float32)
        flat[b] = rng.standard_normal((layers, 4, outputs), np.float32)
    return flat


def plain(params):
    return {path: leaf for path, leaf in params.items() if not lora.is_factor(path)}


def sources(config, params, folder):
    """A source of each kind: where it is, and its parameters as float32 trees."""
    saved = {
        "run": plain(params),
        "factors": params,
        "frozen in bfloat16": {
            path: leaf if lora.is_factor(path) else leaf.astype(jnp.bfloat16)
            for path, leaf in params.items()
        },
    }
    for name, flat in saved.items():
        path = folder / name
        save_weights(path / "video", {"elva": unflatten_paths(flat)}, config, "video")
        testing.tiny_tokenizer().save_pretrained(path / "tokenizer")
        floats = {p: jnp.asarray(leaf, jnp.float32) for p, leaf in flat.items()}
        yield path / "video", lora.merge(unflatten_paths(floats), ALPHA)
    for dtype in ("float32", "bfloat16", "float16"):
        path, tree = folder / dtype, unflatten_paths(plain(params))
        save_pretrained(path, tree, config, testing.tiny_tokenizer(), stage="video", dtype=dtype)
        yield (
            path,
            unflatten_paths(
                {p: leaf.astype(dtype).astype(np.float32) for p, leaf in plain(params).items()}
            ),
        )


def assert_same(weights, expected):
    assert jax.tree.structure(weights) == jax.tree.structure(expected)
    for (path, leaf), wanted in zip(
        jax.tree_util.tree_leaves_with_path(weights), jax.tree.leaves(expected), strict=True
    ):
        assert leaf.dtype == wanted.dtype, path
        np.testing.assert_array_equal(
            np.asarray(leaf, np.float32), np.asarray(wanted, np.float32), err_msg=str(path)
        )


@pytest.mark.parametrize("layers", [1, 3], ids=["by layer", "stacks"])
def test_every_source_gives_the_weights_of_its_whole_tree(
    config, params, tmp_path, monkeypatch, layers
):
    """Also from steps of large models, whose arrays are cut into a chunk per layer."""
    if layers == 1:
        monkeypatch.setattr(module, "TOGETHER", 0)
        monkeypatch.setattr(handlers, "CHUNK_BYTES", 1024)
    for path, tree in sources(config, params, tmp_path):
        expected = unstack_layers(config.model, tree)
        with opening_source(path) as source:
            assert_same(load_weights(source, config.model), expected)
            hashed = HashedWeights(source)
            keep = watched(hashed, compute_type(config.model))
            assert_same(load_weights(source, config.model, keep=keep), expected)
            if isinstance(source, SavedRun):
                assert_same(ElvaModel.from_run(source).engine.weights, expected)
        assert hashed.hexdigest() == weights_hash(tree)
        if isinstance(source, SavedRun):
            assert source.rows_at_once("elva/decoder/layers/q_proj/kernel") == layers
        assert weights_hash(open_run_or_folder(path).params) == weights_hash(tree)


def test_a_quantized_model_is_never_whole(config, params, tmp_path):
    """Each tensor is quantized as it arrives, from what is saved, whatever the compute type."""
    path, tree = next(sources(config, params, tmp_path))
    whole = unstack_layers(dataclasses.replace(config.model, dtype="float32"), tree)
    with opening_source(path) as source:
        for scheme in ("int8", "int4"):
            found = load_source(source, dtype="float32", weights=scheme).engine.weights
            assert_same(found, quantize_weights(whole, scheme))
        expected = load_source(source, weights="int8").engine.weights
        assert_same(ElvaModel.from_run(source, weights="int8").engine.weights, expected)


def test_what_is_kept_of_a_tensor_is_up_to_the_caller(config, params, tmp_path):
    save_weights(tmp_path / "video", {"elva": unflatten_paths(params)}, config, "video")
    seen = []

    def keep(path, array):
        seen.append((path, array.shape, array.dtype.name))
        return (array.sum(), None) if path.endswith("kernel") else array

    with opening_source(tmp_path / "video") as source:
        weights = load_weights(source, config.model, keep=keep)
    kernel = params["decoder/layers/o_proj/kernel"]
    assert ("decoder/layers/2/o_proj/kernel", kernel.shape[1:], "float32") in seen
    assert len(seen) == len(set(seen))
    assert weights.layers[2]["o_proj"]["kernel"][0] == pytest.approx(kernel[2].sum(), rel=1e-3)
    assert not any(lora.is_factor(path) for path, *_ in seen)


def test_weights_that_are_missing_or_not_finite_are_named(config, params, tmp_path):
    flat = plain(params)
    del flat["decoder/norm/scale"]
    save_weights(tmp_path / "run" / "video", {"elva": unflatten_paths(flat)}, config, "video")
    with (
        pytest.raises(CheckpointError, match=r"/run\S*: its weights lack norm"),
        opening_source(tmp_path / "run" / "video") as source,
    ):
        load_weights(source, config.model)
    folder = tmp_path / "folder"
    save_pretrained(
        folder,
        unflatten_paths(plain(params)),
        config,
        testing.tiny_tokenizer(),
        stage="video",
        dtype="bfloat16",
    )
    (folder / "checksums.json").unlink()
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].copy()
    tensors[name][3, 4] = np.inf
    save_file(tensors, file)
    with (
        pytest.raises(ConvertError, match=rf"{Path(file).name}: {name} holds values that are not"),
        opening_source(folder) as source,
    ):
        load_weights(source, config.model)
