"""`elva convert import`: its files, its messages, its refusals, and its memory."""

import functools
import json
import os
import re
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers

from elva_jax import cli
from elva_jax.checkpoints.restore import load_run
from elva_jax.config import schema
from elva_jax.errors import CheckpointError, ConvertError
from elva_jax.hf.import_checkpoint import import_weights
from elva_jax.hf.write_store import write_store

CONFIG = """
from elva_jax.config import schema
def get_config(arg=""):
    c = schema.base()
    c.model.update(vocab_size=90, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4)
    c.model.update(num_kv_heads=2, head_dim=8, rope_theta=10_000.0, max_position=int(arg or 64))
    c.model.update(tie_embeddings=False, dtype="float32")
    c.curriculum = ("sft",)
    c.stages.sft = schema.stage()
    c.stages.sft.steps = 1
    c.stages.sft.data.update(longest_edge=56, system_prompt="Be brief.", seq_len=64, max_patches=16)
    c.stages.sft.data.mixture.x = schema.source("x", "train")
    return c
"""


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen") / "hf"
    config = transformers.Qwen2Config(
        vocab_size=83, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(
        folder, max_shard_size="20kB"
    )
    return folder


def embedding(folder):
    return (
        transformers.Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
        .model.embed_tokens.weight.detach()
        .numpy()
    )


def test_the_command(qwen, tmp_path, capsys):
    (tmp_path / "config.py").write_text(CONFIG)
    assert (
        cli.main(
            [
                "convert",
                "import",
                str(qwen),
                str(tmp_path / "out"),
                "--config",
                f"{tmp_path / 'config.py'}:72",
                "--config.name=mine",
            ]
        )
        == 0
    )
    told = capsys.readouterr().out
    assert re.search(
        r"out: 21,408 parameters in bfloat16 from .*hf \(model_type qwen2\); not in it, .*:"
        r" elva/patch_embed\n",
        told,
    )
    assert re.search(
        r"peak resident memory \d+\.\d\d GB, \d+\.\d\d times the 0\.00 GB of the source", told
    )
    run = load_run(tmp_path / "out")
    assert (run.stage, run.step, run.config.model.max_position) == ("converted", 0, 72)
    assert run.config.name == "mine"
    assert run.config.stages["converted"].data.system_prompt == "Be brief."
    assert set(run.params) == {"elva"}
    assert set(run.params["elva"]) == {"decoder"}
    table = run.params["elva"]["decoder"]["embed_tokens"]
    assert (table.shape, table.dtype) == ((90, 32), ml_dtypes.bfloat16)
    np.testing.assert_array_equal(table[:83].astype(np.float32), embedding(qwen))
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []

    file = max((tmp_path / "out").rglob("params/**/d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"checkpoints/0: is damaged \(params/\S+ is not what was saved\)"
    ):
        load_run(tmp_path / "out")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_another_dtype_and_no_configuration(qwen, tmp_path, dtype):
    done = import_weights(qwen, tmp_path / "out", dtype=dtype)
    assert (done.dtype, done.absent) == (dtype, ("elva/patch_embed",))
    run = load_run(tmp_path / "out")
    assert (
        run.config.model.vocab_size,
        run.config.model.num_layers,
        run.config.model.tie_embeddings,
    ) == (83, 2, False)
    assert {leaf.dtype for leaf in jax.tree.leaves(run.params)} == {np.dtype(dtype)}


def test_a_vision_tower(tmp_path):
    config = transformers.SiglipVisionConfig(
        image_size=32,
        patch_size=16,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    model = transformers.SiglipVisionModel(config)
    model.save_pretrained(tmp_path / "hf")
    done = import_weights(tmp_path / "hf", tmp_path / "out")
    assert done.absent == ()
    run = load_run(tmp_path / "out", kind="teacher")
    assert (run.config.teacher.hidden_size, run.config.teacher.kind) == (16, "siglip")
    wanted = dict(model.named_parameters())["post_layernorm.bias"].detach().numpy()
    np.testing.assert_array_equal(run.params["vision"]["post_norm_bias"], wanted)
    assert done.parameters == sum(leaf.size for leaf in jax.tree.leaves(run.params))
    with pytest.raises(CheckpointError, match="no stage of kind elva"):
        load_run(tmp_path / "out")


def test_refusals_leave_nothing(qwen, tmp_path, capsys):
    out = tmp_path / "out"
    config = schema.base()
    with pytest.raises(ConvertError, match=r"num_heads is 4, the run has model\.num_heads = 12"):
        import_weights(qwen, out, config)
    with pytest.raises(ConvertError, match="--dtype int8: use one of keep, float32"):
        import_weights(qwen, out, dtype="int8")
    assert cli.main(["convert", "import", str(tmp_path / "nowhere"), str(out)]) == 1
    assert "nowhere: no such folder" in capsys.readouterr().err
    broken = tmp_path / "broken"
    opened = transformers.Qwen2ForCausalLM.from_pretrained(qwen, dtype=torch.float32).state_dict()
    opened["model.norm.weight"][3] = float("nan")
    write_store(
        broken,
        ((name, value.numpy()) for name, value in opened.items()),
        files={"config.json": qwen / "config.json"},
    )
    with pytest.raises(ConvertError, match=r"model\.norm\.weight holds values that are not finite"):
        import_weights(broken, out)
    assert {entry.name for entry in tmp_path.iterdir()} == {"broken"}
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(ConvertError, match="out: exists already"):
        import_weights(qwen, out)


def test_a_tokenizer_that_the_vocabulary_cannot_hold(qwen, tmp_path):
    from elva_jax.data import tokenizer

    folder = tmp_path / "hf"
    tokenizer.build(["some words about a circle"] * 5, folder, 300)
    for file in qwen.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.py").write_text(CONFIG)
    from elva_jax.config.load import load

    with pytest.raises(
        ConvertError,
        match=r"with <FRAME>, <PATCH>, <LINE> its tokenizer has \d+ tokens; raise model\.vocab_size"
        r" from 90",
    ):
        import_weights(folder, tmp_path / "out", load(str(tmp_path / "config.py")))
    import_weights(folder, tmp_path / "out")
    run = load_run(tmp_path / "out")
    words = tokenizer.load(run.tokenizer_dir)
    assert (
        run.config.model.vocab_size
        == len(words)
        == run.params["elva"]["decoder"]["embed_tokens"].shape[0]
    )
    assert words.convert_tokens_to_ids("<LINE>") == len(words) - 1


WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("grain", "tensorflow_datasets"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent())
from elva_jax.cli import main
sys.exit(main(["convert", "import", *sys.argv[1:]]))
"""


def convert(source, out, *words):
    """What `elva convert import` prints where these are absent, and its peak memory in GB."""
    command = [sys.executable, "-c", WITHOUT, source, out, *words]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout, float(re.search(r"peak resident memory ([\d.]+) GB", done.stdout)[1])


@pytest.fixture(scope="module")
def small(qwen, tmp_path_factory):
    """`convert` of a tiny model."""
    return convert(qwen, tmp_path_factory.mktemp("small") / "out")


def test_converting_needs_neither_grain_nor_tensorflow_datasets(small):
    assert "20,960 parameters" in small[0]


WIDTH, INNER, LAYERS, ROWS = 1536, 8960, 9, 151_936  # Qwen2-1.5B has 28 layers


def large_tensors():
    rng = np.random.default_rng(0)

    @functools.cache  # layers share their values: to draw them all takes seconds
    def draw(*shape):
        bits = rng.integers(0, 1 << 14, int(np.prod(shape)), dtype=np.uint16) | np.uint16(0x3000)
        return bits.view(ml_dtypes.bfloat16).reshape(shape)

    yield "model.embed_tokens.weight", draw(ROWS, WIDTH)
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        for name, out in (("q", WIDTH), ("k", 256), ("v", 256), ("o", WIDTH)):
            yield f"{at}self_attn.{name}_proj.weight", draw(out, WIDTH)
            if name != "o":
                yield f"{at}self_attn.{name}_proj.bias", draw(out)
        for name, shape in (
            ("gate", (INNER, WIDTH)),
            ("up", (INNER, WIDTH)),
            ("down", (WIDTH, INNER)),
        ):
            yield f"{at}mlp.{name}_proj.weight", draw(*shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{at}{name}.weight", draw(WIDTH)
    yield "model.norm.weight", draw(WIDTH)


@pytest.mark.slow
def test_a_large_checkpoint_takes_little_more_memory_than_its_size(small, tmp_path, config_dir):
    """The import of a tiny model says what Python, JAX and Orbax take by themselves.

    Beside the parameters are the copies that are being written, of at most 1 GB, and a few more of
    single tensors; a second copy of all would be 1.3 GB.
    """
    config = transformers.Qwen2Config(
        vocab_size=ROWS, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS,
        num_attention_heads=12, num_key_value_heads=2, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
    ).to_json_string()  # fmt: skip
    source, out = tmp_path / "hf", tmp_path / "out"
    write_store(source, large_tensors(), files={"config.json": config.encode()})
    fields = [f"--config.model.num_layers={LAYERS}", "--config.model.merge_layers=(2, 5, 8)"]
    told, peak = convert(source, out, "--config", f"{config_dir / 'elva.py'}:size=1_5b", *fields)
    _, fixed = small
    print(told, fixed)
    assert "654,555,648 parameters in bfloat16" in told
    size = sum(file.stat().st_size for file in source.glob("*.safetensors")) / 1e9
    assert 1.30 < size < 1.31
    assert peak - fixed - size < 1.2
    meta = json.loads((out / "config.json").read_text())
    assert meta["model"]["hidden_size"] == WIDTH
    for folder in (source, out):  # gigabytes that nobody needs any more
        for file in folder.rglob("*"):
            if file.is_file():
                file.unlink()
