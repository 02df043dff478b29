"""LoRA adapters of PEFT: onto a base, out of a run, and their refusals."""

import dataclasses
import functools
import json
import math
import re

import jax
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import elva_jax
from elva_jax import cli, testing
from elva_jax.checkpoints.restore import load_run, open_run
from elva_jax.checkpoints.save import save_weights
from elva_jax.config.serialize import config_to_dict
from elva_jax.errors import ConvertError
from elva_jax.hf.adapter import READ, WITHOUT_EFFECT, export_adapter, read_adapter
from elva_jax.hf.import_checkpoint import import_weights
from elva_jax.hf.load import load_params
from elva_jax.models.qwen2 import Qwen2
from elva_jax.utils import patterns
from elva_jax.utils.trees import unflatten_paths

LAYERS = 3
WIDTHS = {  # of each projection: inputs, outputs
    "self_attn.q_proj": (32, 32),
    "self_attn.k_proj": (32, 16),
    "self_attn.v_proj": (32, 16),
    "self_attn.o_proj": (32, 32),
    "mlp.gate_proj": (32, 48),
    "mlp.up_proj": (32, 48),
    "mlp.down_proj": (48, 32),
}
MODULES = [f"model.layers.{i}.{name}" for i in range(LAYERS) for name in WIDTHS]
PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}
BASE_SHAPES = {
    f"elva/decoder/layers/{name.partition('.')[2]}/kernel": (LAYERS, *widths)
    for name, widths in WIDTHS.items()
}


@pytest.fixture(scope="module")
def qwen(tmp_path_factory, randomise):
    """(folder, PyTorch model) of a Qwen2 without tokenizer."""
    folder = tmp_path_factory.mktemp("qwen") / "hf"
    config = transformers.Qwen2Config(
        vocab_size=83, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    model = randomise(transformers.Qwen2ForCausalLM(config))
    model.save_pretrained(folder)
    return folder, model


def named(*names, layers=range(LAYERS)):
    """The modules of some projections in some layers."""
    parts = [(module, int(module.split(".")[2])) for module in MODULES]
    return [m for m, layer in parts if m.endswith(tuple(names)) and layer in layers]


def write(folder, modules, config=PLAIN, rank=lambda module: 4, dtype=np.float32):
    """Writes an adapter as PEFT does, with random factors; its tensors."""
    rng, tensors = np.random.default_rng(0), {}
    for module in modules:
        inputs, outputs = WIDTHS[".".join(module.split(".")[3:])]
        for factor, shape in (("A", (rank(module), inputs)), ("B", (outputs, rank(module)))):
            value = rng.normal(0, 0.3, shape).astype(dtype)
            tensors[f"base_model.model.{module}.lora_{factor}.weight"] = value
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return tensors


@functools.cache
def compiled(decoder):
    """Its `apply`, traced once for all cases."""
    return jax.jit(decoder.apply)


def logits(folder, ids):
    run = load_run(folder)
    decoder = Qwen2(dataclasses.replace(run.config.model, dtype="float32"))
    position = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    params = {"params": run.params["elva"]["decoder"]}
    return np.asarray(compiled(decoder)(params, ids, position, np.ones_like(ids)))


CASES = {
    "names": ({}, named("q_proj", "down_proj"), lambda m: 4, lambda m: 8 / 4),
    "all-linear": ({"target_modules": "all-linear"}, MODULES, lambda m: 4, lambda m: 8 / 4),
    "regex": (
        {"r": 3, "lora_alpha": 7, "target_modules": r".*\.(0|2)\.mlp\.(up|gate)_proj"},
        named("up_proj", "gate_proj", layers=(0, 2)),
        lambda m: 3,
        lambda m: 7 / 3,
    ),
    "rank-stabilized": (
        {"r": 3, "use_rslora": True, "target_modules": ["o_proj", "v_proj"]},
        named("o_proj", "v_proj"),
        lambda m: 3,
        lambda m: 8 / math.sqrt(3),
    ),
    "patterns": (
        {"rank_pattern": {"q_proj": 5}, "alpha_pattern": {r"layers\.[01]\..*": 3}},
        named("q_proj", "down_proj"),
        lambda m: 5 if "q_proj" in m else 4,
        lambda m: (8 if ".2." in m else 3) / (5 if "q_proj" in m else 4),
    ),
    "layers": ({"layers_to_transform": [1]}, named("q_proj", "down_proj", layers=(1,)),
               lambda m: 4, lambda m: 8 / 4),
    "one excluded": (
        {"exclude_modules": ["layers.1.mlp.down_proj"]},
        [m for m in named("q_proj", "down_proj") if m != "model.layers.1.mlp.down_proj"],
        lambda m: 4,
        lambda m: 8 / 4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_pytorch_with_w_plus_s_b_a(case, qwen, tmp_path):
    folder, model = qwen
    change, modules, rank, scale = CASES[case]
    tensors = write(tmp_path / "adapter", modules, {**PLAIN, **change}, rank)
    import_weights(folder, tmp_path / "jax", adapter=tmp_path / "adapter")
    ids = np.random.default_rng(1).integers(0, 83, (2, 7))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    for module in modules:
        a, b = (
            torch.tensor(tensors[f"base_model.model.{module}.lora_{factor}.weight"])
            for factor in "AB"
        )
        weights[f"{module}.weight"] += scale(module) * b @ a
    with torch.no_grad():
        expected = torch.func.functional_call(model, weights, torch.tensor(ids)).logits.numpy()
        plain = model(torch.tensor(ids)).logits.numpy()
    assert np.abs(expected - plain).max() > 0.5
    np.testing.assert_allclose(logits(tmp_path / "jax", ids), expected, atol=5e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("case", ["names", "regex", "layers", "rank-stabilized"])
def test_back_in_pefts_layout_each_tensor_is_bitwise_the_same(case, dtype, qwen, tmp_path):
    change, modules, rank, scale = CASES[case]
    theirs = write(tmp_path / "adapter", modules, {**PLAIN, **change}, rank, dtype)
    import_weights(qwen[0], tmp_path / "jax", adapter=tmp_path / "adapter")
    export_adapter(tmp_path / "jax", tmp_path / "back")
    back = load_file(tmp_path / "back" / "adapter_model.safetensors")
    assert back.keys() == theirs.keys()
    for name, value in theirs.items():
        assert back[name].dtype == value.dtype
        np.testing.assert_array_equal(back[name], value, err_msg=name)
    config = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    assert config["lora_alpha"] / config["r"] == pytest.approx(scale(modules[0]), rel=1e-12)
    assert sorted(config["target_modules"]) == sorted(modules)


def test_an_adapter_of_several_ranks_and_scales_is_the_same_model_again(qwen, tmp_path):
    """Padded and scaled once, it stays bitwise as it is."""
    change, modules, rank, _ = CASES["patterns"]
    write(tmp_path / "adapter", modules, {**PLAIN, **change}, rank)
    import_weights(qwen[0], tmp_path / "once", adapter=tmp_path / "adapter")
    export_adapter(tmp_path / "once", tmp_path / "back")
    import_weights(qwen[0], tmp_path / "twice", adapter=tmp_path / "back")
    once, twice = open_run(tmp_path / "once"), open_run(tmp_path / "twice")
    assert once.factors == twice.factors
    for path in once.factors:
        np.testing.assert_array_equal(once.read_raw(path), twice.read_raw(path))


@pytest.fixture
def base_run(tmp_path):
    """A run of the tiny ELVA, which has the projections of WIDTHS."""
    model, folder = testing.tiny_model(), tmp_path / "run"
    save_weights(folder / "video", {"elva": model.params}, model.config, "video")
    testing.tiny_tokenizer().save_pretrained(folder / "tokenizer")
    (folder / "config.json").write_text(json.dumps(config_to_dict(model.config)))
    return folder


def test_onto_a_run_and_out_of_it_with_the_commands(base_run, tmp_path, capsys):
    """On a base with factors of its own, those are merged first."""
    tensors = write(tmp_path / "adapter", named("q_proj", "down_proj"))

    def elva(*words):
        assert cli.main(["convert", *map(str, words)]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    told = elva("import", base_run, tmp_path / "once", "--adapter", tmp_path / "adapter")
    assert re.search(r"\(stage video, step 0; adapter .*adapter of rank 4\)", told)
    elva("export", tmp_path / "once", tmp_path / "back", "--adapter-only")
    for name, value in load_file(tmp_path / "back" / "adapter_model.safetensors").items():
        np.testing.assert_array_equal(value, tensors[name])
    elva("import", tmp_path / "once", tmp_path / "twice", "--adapter", tmp_path / "back")
    plain, once, twice = (
        load_run(folder).params["elva"]["decoder"]["layers"]
        for folder in (base_run, tmp_path / "once", tmp_path / "twice")
    )
    for layer in range(LAYERS):
        name = f"base_model.model.model.layers.{layer}.mlp.down_proj.lora_"
        product = 2 * (tensors[f"{name}B.weight"] @ tensors[f"{name}A.weight"]).T
        start = np.asarray(plain["down_proj"]["kernel"][layer])
        for times, tree in ((1, once), (2, twice)):
            got = tree["down_proj"]["kernel"][layer]
            np.testing.assert_allclose(got, start + times * product, atol=1e-5)
    np.testing.assert_array_equal(once["up_proj"]["kernel"], plain["up_proj"]["kernel"])
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    answers = [elva_jax.load(path).answer(frames, "?") for path in (tmp_path / "once", base_run)]
    assert all(isinstance(answer, str) for answer in answers)


@pytest.mark.parametrize("door", ["import", "export", "check", "generate", "init_from"])
def test_an_adapter_given_as_a_model_is_told_what_it_is(door, tmp_path, capsys):
    write(tmp_path / "notes", named("q_proj"), {**PLAIN, "base_model_name_or_path": "Qwen/Q"})
    folder, out = str(tmp_path / "notes"), str(tmp_path / "out")
    message = (
        rf"{re.escape(folder)}: is a LoRA adapter \(PEFT\) for Qwen/Q, not a model; put it on its"
        rf" base: elva convert import BASE DST --adapter {re.escape(folder)}"
    )
    if door == "init_from":
        with pytest.raises(ConvertError, match=message):
            load_params(folder, {}, testing.tiny_config())
        return
    words = {
        "import": ["convert", "import", folder, out],
        "export": ["convert", "export", folder, out],
        "check": ["convert", "check", folder, folder],
        "generate": ["generate", "--checkpoint", folder, "--prompt", "?", "--video", "x.mp4"],
    }[door]
    assert cli.main(words) == 1
    assert re.search(message, capsys.readouterr().err)


REFUSED = {
    "use_dora": True,
    "bias": "all",
    "modules_to_save": ["lm_head"],
    "fan_in_fan_out": True,
    "lora_bias": True,
    "layer_replication": [[0, 2]],
    "trainable_token_indices": [1],
    "target_parameters": ["mlp.up_proj.weight"],
    "init_lora_weights": "pissa_niter_4",
    "megatron_config": {"a": 1},
    "use_qalora": True,
    "a_key_of_tomorrow": 3,
}


@pytest.mark.parametrize("key", REFUSED)
def test_a_setting_that_changes_the_result_is_refused_by_name(key, tmp_path):
    write(tmp_path / "x", named("q_proj", "down_proj"), {**PLAIN, key: REFUSED[key]})
    with pytest.raises(ConvertError, match=rf"adapter_config.json: sets {key} = .*; merge it"):
        read_adapter(tmp_path / "x", BASE_SHAPES)


def test_every_setting_of_peft_that_is_off_is_read(tmp_path):
    """As peft 0.19.1 writes it."""
    others = dict.fromkeys((*REFUSED, *WITHOUT_EFFECT), None) | {
        "bias": "none", "use_dora": False, "init_lora_weights": True, "lora_dropout": 0.1,
        "loftq_config": {}, "task_type": "CAUSAL_LM", "fan_in_fan_out": False,
        "rank_pattern": {}, "alpha_pattern": {}, "layers_pattern": None,
    }  # fmt: skip
    write(tmp_path / "x", named("q_proj", "down_proj"), {**others, **PLAIN})
    assert read_adapter(tmp_path / "x", BASE_SHAPES).lora.alpha == 8


def test_an_adapter_for_another_shape_is_refused_with_tensor_and_both_shapes(tmp_path):
    write(tmp_path / "x", named("q_proj", "down_proj"))
    base = {
        path: (2, shape[1], shape[2] + 16) if "q_proj" in path else shape
        for path, shape in BASE_SHAPES.items()
    }
    with pytest.raises(ConvertError) as caught:
        read_adapter(tmp_path / "x", base)
    told = str(caught.value)
    assert (
        "base_model.model.model.layers.{}.self_attn.q_proj.lora_B.weight is [32, 4], expected"
        " [48, 4] for {} = 0 … 1" in told
    )
    assert "layers.2.self_attn.q_proj.lora_A.weight [4, 32] is unexpected" in told
    assert "down_proj" not in told.partition("; give")[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": 3}, r"q_proj.lora_A.weight is \[4, 32\], expected \[3, 32\]"),
        ({"target_modules": ["q_proj", "v_proj", "down_proj"]}, r"v_proj.lora_A.* is missing"),
        ({"target_modules": ["q_proj"]}, r"down_proj.lora_A.weight is not of target_modules"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only LORA"),
        ({"target_modules": r"(.|..|...)+(?=!)"}, r"the pattern .* cannot be used"),
        ({"target_modules": "("}, r"the pattern '\(' cannot be used"),
        ({"rank_pattern": {"*": 4}}, "the pattern .* cannot be used"),
    ],
)
def test_what_contradicts_the_file(change, message, tmp_path, monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.2)
    write(tmp_path / "x", named("q_proj", "down_proj"), {**PLAIN, **change})
    with pytest.raises(ConvertError, match=message):
        read_adapter(tmp_path / "x", BASE_SHAPES)


def test_broken_files(tmp_path):
    write(tmp_path / "x", named("q_proj", "down_proj"))
    file = tmp_path / "x" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(iter(tensors))
    save_file({**tensors, name: np.full_like(tensors[name], np.nan)}, file)
    with pytest.raises(ConvertError, match=f"{name} holds values that are not finite"):
        read_adapter(tmp_path / "x", BASE_SHAPES)
    save_file({**tensors, name: np.ones(tensors[name].shape, np.int8)}, file)
    with pytest.raises(ConvertError, match=f"{name} is int8, not a float"):
        read_adapter(tmp_path / "x", BASE_SHAPES)
    file.unlink()
    with pytest.raises(ConvertError, match=r"adapter_model\.safetensors is missing"):
        read_adapter(tmp_path / "x", BASE_SHAPES)
    (tmp_path / "x" / "adapter_config.json").unlink()
    with pytest.raises(ConvertError, match=r"has no adapter_config\.json"):
        read_adapter(tmp_path / "x", BASE_SHAPES)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzzed") / "x"
    write(folder, named("q_proj", "down_proj"))
    return folder


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(change=st.dictionaries(st.sampled_from(sorted(READ)), VALUES, min_size=1, max_size=3))
def test_any_value_of_a_setting_is_honored_or_one_line(change, written):
    (written / "adapter_config.json").write_text(json.dumps({**PLAIN, **change}))
    try:
        adapter = read_adapter(written, BASE_SHAPES)
    except ConvertError as error:
        told = str(error)
    else:
        told = str(written)
        assert adapter.lora.alpha > 0
        assert all(np.isfinite(value).all() for value in adapter.factors.values())
    assert str(written) in told
    assert "\n" not in told


def test_what_an_adapter_alone_cannot_hold_is_not_exported(base_run, tmp_path):
    with pytest.raises(ConvertError, match=r"stage video has no LoRA factors; .* --adapter-only"):
        export_adapter(base_run, tmp_path / "out")
    write(tmp_path / "adapter", named("q_proj", "down_proj"))
    import_weights(base_run, tmp_path / "jax", adapter=tmp_path / "adapter")
    run = load_run(tmp_path / "jax")
    stage = run.config.stages["converted"]
    lora = dataclasses.replace(stage.optimizer.lora, also=("patch_embed",))
    optimizer = dataclasses.replace(stage.optimizer, lora=lora)
    config = dataclasses.replace(
        run.config, stages={"converted": dataclasses.replace(stage, optimizer=optimizer)}
    )
    raw = open_run(tmp_path / "jax")
    factors = {path: raw.read_raw(path) for path in raw.factors}
    save_weights(tmp_path / "other" / "converted", unflatten_paths(factors), config, "converted")
    with pytest.raises(ConvertError, match=r"trained patch_embed too \(lora.also\)"):
        export_adapter(tmp_path / "other" / "converted", tmp_path / "out")


def test_bases_that_take_no_adapter(base_run, tmp_path):
    write(tmp_path / "adapter", named("q_proj", "down_proj"))
    with pytest.raises(ConvertError, match="a run has its own configuration"):
        import_weights(
            base_run, tmp_path / "out", testing.tiny_config(), adapter=tmp_path / "adapter"
        )
    config = transformers.SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        image_size=8, patch_size=4,
    )  # fmt: skip
    transformers.SiglipVisionModel(config).save_pretrained(tmp_path / "tower")
    with pytest.raises(ConvertError, match="its base is a decoder, not a vision tower"):
        import_weights(tmp_path / "tower", tmp_path / "out", adapter=tmp_path / "adapter")
    assert not (tmp_path / "out").exists()
