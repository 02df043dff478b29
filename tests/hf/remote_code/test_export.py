"""Tests of the folder that `elva convert export` writes."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from elva_jax.checkpoints.restore import load_run
from elva_jax.data.tokenizer import load as load_tokenizer
from elva_jax.errors import CheckpointError, ConvertError
from elva_jax.hf.export import export, save_pretrained

WITHOUT_US = """
import sys
ABSENT = {"jax", "jaxlib", "flax", "elva_jax", "orbax", "ml_collections"}
ABSENT |= {"tensorflow_datasets", "grain"}
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import numpy as np
from transformers import AutoModelForCausalLM, AutoProcessor
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
content = [{"type": "video", "video": frames}, {"type": "text", "text": "What?"}]
options = dict(add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
inputs = processor.apply_chat_template([{"role": "user", "content": content}], **options)
answer = model.generate(**inputs, max_new_tokens=5)[0, inputs["input_ids"].shape[1]:]
print("answer:", answer.tolist())
"""


def environment(tmp_path):
    return {**os.environ, "HF_HOME": str(tmp_path / "hf_home"), "HF_HUB_OFFLINE": "1"}


def test_folder_loads_without_jax_and_this_package(exported, generator, tmp_path):
    command = [sys.executable, "-c", WITHOUT_US, str(exported)]
    out = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(tmp_path),
        check=False,
    )
    assert out.returncode == 0, out.stderr
    frames = list(np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8))
    prefilled = generator.prefill([(generator.read_media(frames),)], prompts=["What?"])
    wanted = list(prefilled.generate([["What?"]], 5)[0][0].tokens)
    assert json.loads(out.stdout.partition("answer: ")[2])[: len(wanted)] == wanted


def test_every_parameter_is_exported_bitwise(exported, run_dir):
    """Parameters that Qwen2 has keep its names; matrices are transposed, guidance heads omitted."""
    params = load_run(run_dir).params["elva"]
    tensors = load_file(exported / "model.safetensors")
    layers, patch = params["decoder"]["layers"], params["patch_embed"]
    wanted = {
        "model.embed_tokens.weight": params["decoder"]["embed_tokens"],
        "lm_head.weight": params["decoder"]["lm_head"].T,
        "model.norm.weight": params["decoder"]["norm"]["scale"],
        "model.patch_embed.frame_token": patch["frame"],
        "model.patch_embed.line_token": patch["line"],
        "model.patch_embed.proj.weight": patch["proj"]["kernel"].T,
        "model.patch_embed.proj.bias": patch["proj"]["bias"],
        "model.patch_embed.q_proj.weight": patch["q_kernel"].T,
        "model.patch_embed.k_proj.weight": patch["k_kernel"].T,
        "model.patch_embed.v_proj.weight": patch["v_kernel"].T,
        "model.patch_embed.out_proj.weight": patch["out_proj"]["kernel"].T,
    }
    for i in range(3):
        at = f"model.layers.{i}."
        for block, names in (("self_attn", ("q", "k", "v", "o")), ("mlp", ("gate", "up", "down"))):
            for name in names:
                wanted[f"{at}{block}.{name}_proj.weight"] = layers[f"{name}_proj"]["kernel"][i].T
        wanted |= {
            f"{at}self_attn.{name}_proj.bias": layers[f"{name}_proj"]["bias"][i] for name in "qkv"
        }
        wanted |= {
            f"{at}{name}.weight": layers[name]["scale"][i]
            for name in ("input_layernorm", "post_attention_layernorm")
        }
    assert set(tensors) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_array_equal(tensors[name], value, err_msg=name)


def test_export_from_memory_gives_the_same_folder(run_dir, exported, tmp_path):
    run = load_run(run_dir)
    tokenizer = load_tokenizer(run.tokenizer_dir)
    words = len(tokenizer)
    target = tmp_path / exported.name
    params = run.params["elva"]
    save_pretrained(target, params, run.config, tokenizer, stage=run.stage, step=run.step)
    assert len(tokenizer) == words
    assert {file.name for file in target.iterdir()} == {file.name for file in exported.iterdir()}
    for file in exported.iterdir():
        assert (target / file.name).read_bytes() == file.read_bytes(), file.name


def test_other_files_of_the_folder(exported):
    config, generation = (
        json.loads((exported / name).read_text())
        for name in ("config.json", "generation_config.json")
    )
    assert config["frame_token_id"] == 500
    assert config["eos_token_id"] == generation["eos_token_id"]
    assert generation["suppress_tokens"] == list(range(500, 520))
    card = (exported / "README.md").read_text()
    assert "trust_remote_code=True" in card
    assert "$" not in card
    assert {file.suffix for file in exported.iterdir()} == {
        ".py",
        ".json",
        ".md",
        ".jinja",
        ".safetensors",
    }


def test_frame_settings_are_those_of_the_stage(exported, write_run, tmp_path):
    """Hybrid resolution is off by default; its low edge and policy are those of the stage."""
    run = write_run(
        tmp_path / "run", data=dict(num_low_frames=3, low_longest_edge=24, hybrid_policy="scene")
    )
    export(run, tmp_path / "out")
    for folder, wanted in (
        (exported, (4, 32, 0, 16, "interleave")),
        (tmp_path / "out", (4, 32, 0, 24, "scene")),
    ):
        media = json.loads((folder / "processor_config.json").read_text())["image_processor"]
        names = (
            "num_frames",
            "longest_edge",
            "num_low_frames",
            "low_longest_edge",
            "hybrid_policy",
        )
        assert tuple(media[name] for name in names) == wanted


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes_are_rounded(exported, run_dir, tmp_path, dtype):
    export(run_dir, tmp_path / "half", dtype=dtype)
    exact, rounded = (
        load_file(exported / "model.safetensors"),
        load_file(tmp_path / "half" / "model.safetensors"),
    )
    kind = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}[dtype]
    for name, value in exact.items():
        np.testing.assert_array_equal(
            rounded[name].view(np.uint16), value.astype(kind).view(np.uint16)
        )
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == dtype


def test_invalid_exports_are_refused(run_dir, write_run, exported, tmp_path):
    with pytest.raises(ConvertError, match=r"float8: use one of float32, bfloat16, float16"):
        export(run_dir, tmp_path / "out", dtype="float8")
    with pytest.raises(CheckpointError, match="no such directory"):
        export(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(ConvertError, match=str(exported)):
        export(run_dir, exported)
    run = load_run(run_dir)
    model = dataclasses.replace(run.config.model, frame_attention="bidirectional")
    config = dataclasses.replace(run.config, model=model)
    with pytest.raises(ConvertError, match=r"has model\.frame_attention = bidirectional"):
        save_pretrained(tmp_path / "out", {}, config, None, stage=run.stage)
    big = write_run(tmp_path / "big", patch_width=8)
    scaled(big, 1e6)
    with pytest.raises(ConvertError, match="not finite in float16"):
        export(big, tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()


def scaled(run, factor):
    """A copy of a run with scaled weights."""
    import jax
    import optax

    from elva_jax.checkpoints import state as states
    from elva_jax.checkpoints.save import Checkpoints

    saved = load_run(run)
    params = jax.tree.map(lambda leaf: leaf * factor, saved.params)
    with Checkpoints(run / "video" / "checkpoints") as checkpoints:
        checkpoints.save(
            saved.step + 1, states.create(params, optax.sgd(0.1)), {}, saved.config, "video"
        )


SLOW_EXPORT = """
import sys, time
from elva_jax.hf import export, param_mapping
whole = param_mapping.Table.to_theirs
def slowly(self, path, value):
    time.sleep(0.05)
    yield from whole(self, path, value)
param_mapping.Table.to_theirs = slowly
export.export(sys.argv[1], sys.argv[2])
"""


def test_killed_export_leaves_nothing(run_dir, tmp_path):
    out = tmp_path / "there" / "elva"
    out.parent.mkdir()
    process = subprocess.Popen([sys.executable, "-c", SLOW_EXPORT, str(run_dir), str(out)])
    deadline = time.time() + 120
    while not any(
        out.parent.iterdir()
    ):  # until it has begun to write to a temporary folder beside the target
        assert process.poll() is None
        assert time.time() < deadline
        time.sleep(0.01)
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    export(run_dir, out)  # leftovers do not prevent the next export
    assert (out / "model.safetensors").is_file()
