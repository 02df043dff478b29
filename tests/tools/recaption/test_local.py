"""Tests of the local engine with a tiny random Qwen2-VL against transformers."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from elva_jax.cli import main
from elva_jax.data import tokenizer as tokenizers
from elva_jax.tools.recaption.local import Local, patches
from elva_jax.utils.chat_client import Reply

from .conftest import read_lines

RNG = np.random.default_rng(0)
FRAMES = [RNG.integers(0, 256, (56, 84, 3), dtype=np.uint8) for _ in range(3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a tiny model and its tokenizer."""
    path = tmp_path_factory.mktemp("qwen2-vl")
    tokenizer = tokenizers.build(
        ["Describe the picture, what is there and how it looks."] * 50, path, vocab_size=400
    )
    tokenizer.add_special_tokens(
        {
            "additional_special_tokens": [
                "<|vision_start|>",
                "<|vision_end|>",
                "<|image_pad|>",
                "<|video_pad|>",
            ]
        }
    )
    tokenizer.save_pretrained(path)
    ids = {
        name: tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("image_pad", "video_pad", "vision_start", "vision_end")
    }
    text = dict(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=None,
        eos_token_id=None,
        initializer_range=0.5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    )
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=dict(depth=1, embed_dim=32, hidden_size=32, num_heads=2, mlp_ratio=2),
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
    )
    torch.manual_seed(0)
    Qwen2VLForConditionalGeneration(config).save_pretrained(path)
    return path


def processed(frame):
    """transformers' patches of one image, [N, 3, 2, 14 * 14] (the frame twice), and its grid."""
    out = Qwen2VLImageProcessorPil()(images=Image.fromarray(frame), return_tensors="np")
    return out["pixel_values"].reshape(-1, 3, 2, 196), out["image_grid_thw"][0].tolist()


def test_patches_of_an_image_equal_those_of_transformers():
    found, grid = patches(FRAMES[:1])
    expected, expected_grid = processed(FRAMES[0])
    assert list(grid) == expected_grid == [1, 4, 6]
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-5)


def test_patches_of_a_video_pair_frames_and_repeat_the_last():
    found, grid = patches(FRAMES)
    assert grid == (2, 4, 6)
    found = found.reshape(2, 24, 3, 2, 196)
    for k, frame in enumerate([*FRAMES, FRAMES[-1]]):
        np.testing.assert_allclose(
            found[k // 2, :, :, k % 2], processed(frame)[0][:, :, 0], atol=1e-5
        )


def greedy(engine, kind, frames, prompt, count):
    """Greedy decoding without a cache, from a prompt that is written explicitly."""
    values, grid = patches(frames)
    text = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    text += "<|im_start|>user\n<|vision_start|>"
    text += f"<|{kind}_pad|>" * (grid[0] * grid[1] * grid[2] // 4)
    text += f"<|vision_end|>{prompt}<|im_end|>\n<|im_start|>assistant\n"
    ids = torch.tensor([engine._tokenizer(text).input_ids])
    length = ids.shape[1]
    pixels = {"image": "pixel_values", "video": "pixel_values_videos"}[kind]
    for _ in range(count):
        types = (ids == engine._model.config.image_token_id).int() + 2 * (
            ids == engine._model.config.video_token_id
        ).int()
        media = {pixels: torch.from_numpy(values), f"{kind}_grid_thw": torch.tensor([grid])}
        with torch.no_grad():
            logits = engine._model(
                input_ids=ids, mm_token_type_ids=types, use_cache=False, **media
            ).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
    return ids[0, length:].tolist(), length


@pytest.mark.parametrize(("kind", "frames"), [("image", FRAMES[:1]), ("video", FRAMES)])
def test_answers_are_the_most_likely_tokens(folder, kind, frames, monkeypatch):
    engine = Local.load(str(folder), device="cpu", dtype="float32", max_new_tokens=6)
    expected, length = greedy(engine, kind, frames, "What is there?", 6)
    assert len(set(expected)) > 1
    decode = engine._tokenizer.decode
    reply = engine.describe(kind, frames, "What is there?")
    assert reply == Reply(
        text=decode(expected, skip_special_tokens=True).strip(),
        finish="length",
        prompt_tokens=length,
        new_tokens=6,
    )
    # The same answer, if a later token (at its first occurrence) is the end of the turn.
    end = next(k for k in range(1, 6) if expected[k] not in expected[:k])
    monkeypatch.setattr(engine._tokenizer, "convert_tokens_to_ids", lambda token: expected[end])
    reply = engine.describe(kind, frames, "What is there?")
    assert (reply.finish, reply.new_tokens) == ("stop", end + 1)


def test_command_runs_the_local_engine(folder, manifest, capsys):
    path = manifest(3)
    words = [
        "--model",
        str(folder),
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--max-new-tokens",
        "4",
    ]
    assert (
        main(
            ["recaption", "--manifest", str(path), "--out", str(path.parent / "out.jsonl"), *words]
        )
        == 1  # no medium got a caption
    )
    lines = read_lines(path.parent / "out.rejected.jsonl")  # a random model gives no usable caption
    assert sorted(line["id"] for line in lines) == ["i0", "i1", "i2"]
    assert {line["reason"] for line in lines} <= {"truncated", "repetition"}
    assert "0 captions" in capsys.readouterr().out


def test_a_folder_without_a_model_is_named(tmp_path, manifest, capsys):
    path = manifest(1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    assert (
        main(
            [
                "recaption",
                "--manifest",
                str(path),
                "--out",
                str(tmp_path / "o.jsonl"),
                "--model",
                str(tmp_path / "empty"),
            ]
        )
        == 2
    )
    assert "--model=" in capsys.readouterr().err
