"""Tests of text towers (BERT, and SigLIP's): folders of transformers, features against PyTorch."""

import dataclasses
import json

import flax.linen as nn
import jax
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from elva_jax.config.schema import Config, TeacherConfig, TextTowerConfig
from elva_jax.errors import ConvertError
from elva_jax.hf import bert, load
from elva_jax.hf.tensor_store import open_store
from elva_jax.models.towers.bert import Bert
from elva_jax.models.towers.siglip import SiglipText
from elva_jax.utils.trees import flatten_paths, unflatten_paths

VOCAB = 40
TINY = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 12,
}
OTHER = {**TINY, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_act": "gelu_new",
         "layer_norm_eps": 1e-5, "type_vocab_size": 3, "max_position_embeddings": 9}  # fmt: skip
RNG = np.random.default_rng(0)
IDS = RNG.integers(1, VOCAB, (4, 9)).astype(np.int32)
MASK = np.arange(9)[None] < np.array([9, 5, 1, 7])[:, None]


@pytest.fixture
def random_bert(randomise):
    """A BERT of transformers with random parameters, whose norms scale by about 1."""

    def make(cls, sizes):
        model = randomise(cls(transformers.BertConfig(**sizes)))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("LayerNorm.weight"):
                    parameter += 1
        return model

    return make


def load_text(folder, config, init):
    """All parameters of a text tower from a folder."""
    tree = {"text": nn.meta.unbox(jax.eval_shape(init)["params"])}
    shapes = {path: leaf.shape for path, leaf in flatten_paths(tree).items()}
    loaded = load.load_params(folder, load.make_targets(shapes, np.float32), config, subtree="text")
    assert loaded.params.keys() == shapes.keys()
    return unflatten_paths(loaded.params)["text"]


def read(folder, pooling="pooler", **changes):
    """Our features of IDS with the weights of a folder."""
    store = open_store(folder)
    values = bert.read_config(store.config, str(folder)) | changes
    tower = TextTowerConfig(**values, pooling=pooling)
    module = Bert(tower, VOCAB)
    config = dataclasses.replace(Config(), text_tower=tower)
    params = load_text(folder, config, lambda: module.init(jax.random.key(0), IDS, MASK))
    return jax.jit(module.apply)({"params": params}, IDS, MASK)


def reference(model):
    with torch.no_grad():
        return model(
            input_ids=torch.from_numpy(IDS.astype(np.int64)), attention_mask=torch.from_numpy(MASK)
        )


def assert_equal(got, out):
    last = out.last_hidden_state.numpy()
    assert np.abs(last).max() > 1
    np.testing.assert_allclose(np.asarray(got.last)[MASK], last[MASK], atol=1e-4, rtol=0)
    np.testing.assert_allclose(got.pooled, out.pooler_output, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sizes", [TINY, OTHER], ids=["tiny", "other"])
def test_features_equal_transformers(tmp_path, random_bert, sizes):
    model = random_bert(transformers.BertModel, sizes)
    model.save_pretrained(tmp_path)
    assert_equal(read(tmp_path), reference(model))


@pytest.mark.parametrize("old", [False, True], ids=["weight", "gamma"])
def test_folder_with_a_head_and_old_names(tmp_path, random_bert, old):
    """A BertForPreTraining has the prefix `bert.`; files of its first days say gamma and beta."""
    model = random_bert(transformers.BertForPreTraining, TINY)
    state = {name: value.clone().contiguous() for name, value in model.state_dict().items()}
    assert "bert.embeddings.word_embeddings.weight" in state
    if old:
        names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        for new, other in names.items():
            state = {name.replace(new, other): value for name, value in state.items()}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **TINY}))
    assert_equal(read(tmp_path), reference(model.bert))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_without_its_pooler(tmp_path, random_bert, pooling):
    model = random_bert(transformers.BertForMaskedLM, TINY)
    model.save_pretrained(tmp_path)
    last = reference(model.bert).last_hidden_state.numpy()
    mean = (last * MASK[..., None]).sum(1) / MASK.sum(1, keepdims=True)
    wanted = last[:, 0] if pooling == "cls" else mean
    np.testing.assert_allclose(read(tmp_path, pooling).pooled, wanted, atol=1e-4, rtol=0)
    with pytest.raises(ConvertError, match=r"bert\.pooler\.dense\.weight \[32, 32\] is missing"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "roberta"}, "model_type is 'roberta'; text_tower.kind = bert reads bert"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ({"is_decoder": True}, "is_decoder True"),
        ({"type_vocab_size": -1}, "type_vocab_size=-1: must be at least 1"),
        ({"num_hidden_layers": 2}, r"encoder\.layer\.2\..* is unexpected"),
    ],
)
def test_other_berts_are_refused(tmp_path, edit, change, message):
    transformers.BertModel(transformers.BertConfig(**TINY)).save_pretrained(tmp_path)
    edit(tmp_path, **change)
    with pytest.raises(ConvertError, match=message):
        read(tmp_path)


def test_bert_that_contradicts_the_run_is_refused(tmp_path):
    transformers.BertModel(transformers.BertConfig(**TINY)).save_pretrained(tmp_path)
    with pytest.raises(ConvertError, match=r"num_heads is 4, .* text_tower\.num_heads = 2"):
        read(tmp_path, num_heads=2)


@pytest.mark.parametrize("whole", [True, False])
def test_the_text_tower_of_siglip_equals_transformers(tmp_path, randomise, whole):
    """The folder has both towers, or the text tower alone; every row of 9 tokens is whole."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 4}  # fmt: skip
    text = {**sizes, "vocab_size": VOCAB, "max_position_embeddings": 9}
    if whole:
        vision = {**sizes, "image_size": 16, "patch_size": 8}
        model = transformers.SiglipModel(
            transformers.SiglipConfig(text_config=text, vision_config=vision)
        )
        reference = randomise(model).text_model
    else:
        model = reference = randomise(
            transformers.SiglipTextModel(transformers.SiglipTextConfig(**text))
        )
    model.save_pretrained(tmp_path)
    teacher = TeacherConfig(
        hidden_size=32, intermediate_size=48, num_heads=4, text_layers=2, text_length=9
    )
    module = SiglipText(teacher, VOCAB)
    config = dataclasses.replace(Config(), teacher=teacher)
    params = load_text(tmp_path, config, lambda: module.init(jax.random.key(0), IDS))
    with torch.no_grad():
        wanted = reference(input_ids=torch.from_numpy(IDS.astype(np.int64))).pooler_output
    got = jax.jit(module.apply)({"params": params}, IDS)
    np.testing.assert_allclose(got, wanted, atol=1e-4, rtol=0)
    shorter = dataclasses.replace(config, teacher=dataclasses.replace(teacher, text_length=8))
    with pytest.raises(ConvertError, match=r"max_position_embeddings is 9, .*text_length = 8"):
        load_text(tmp_path, shorter, lambda: module.init(jax.random.key(0), IDS))
