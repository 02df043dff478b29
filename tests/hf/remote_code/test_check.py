"""Tests of `elva convert check`: equal models, different models, and incomparable folders."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from elva_jax.errors import ConvertError
from elva_jax.evaluation.compare import check, compare, greedy, kl, open_side, synthetic_frames
from elva_jax.evaluation.side import Answered

QUESTION = "What colour is the circle?"


def copy(folder, target, change):
    """Copies a folder without checksums; `change` modifies the weights ({name: array})."""
    target.mkdir()
    for file in folder.iterdir():
        if file.name not in ("checksums.json", "model.safetensors"):
            (target / file.name).write_bytes(file.read_bytes())
    save_file(
        change(load_file(folder / "model.safetensors")),
        target / "model.safetensors",
        metadata={"format": "pt"},
    )
    return target


def test_difference_between_two_folders_is_found(exported, tmp_path, videos):
    def louder(tensors):
        tensors["lm_head.weight"] = tensors["lm_head.weight"] * np.float32(1.01)
        return tensors

    def blind(tensors):
        tensors["model.patch_embed.proj.weight"] = tensors["model.patch_embed.proj.weight"][
            :, ::-1
        ].copy()
        return tensors

    same = check(exported, exported, video=videos[0], prompt=QUESTION, new_tokens=4)
    assert same.same
    assert "largest logit difference: 0.00e+00 (tolerance 1e-04)" in same.lines
    assert same.lines[-1].startswith("patches read: ")
    assert same.lines[-1].endswith("largest difference 0 of 255")
    other = check(
        exported,
        copy(exported, tmp_path / "louder", louder),
        video=videos[0],
        prompt=QUESTION,
        new_tokens=4,
    )
    assert not other.same
    # Only the logits.
    assert [line for line in other.lines if line.endswith("<-- beyond")] == [other.lines[2]]
    assert check(
        exported, tmp_path / "louder", video=videos[0], prompt=QUESTION, new_tokens=4, tolerance=1.0
    ).same
    report = check(
        exported,
        copy(exported, tmp_path / "blind", blind),
        video=videos[2],
        prompt=QUESTION,
        new_tokens=4,
    )
    assert not report.same


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda pixels: pixels + np.uint8(2), "patches read: 3, largest difference 2 of 255"),
        (lambda pixels: pixels[:2], "patches read: [3, 12] and [2, 12], not the same"),
    ],
)
def test_other_pixels_are_found(change, line):
    pixels = np.zeros((3, 12), np.uint8)
    one = Answered(
        ids=(1,), index=np.arange(1), logits=np.zeros((1, 4)), tokens=(), length=1, patches=pixels
    )
    report = compare(one, replace(one, patches=change(pixels)), tolerance=1e-4)
    assert not report.same
    assert report.lines[-1] == f"{line}  <-- beyond"


def test_language_model_is_checked_on_plain_text(run_dir, exported, tmp_path):
    """The decoder as transformers' Qwen2, without any file of this package."""
    config = json.loads((exported / "config.json").read_text())
    tensors = load_file(exported / "model.safetensors")
    folder = tmp_path / "qwen2"
    folder.mkdir()
    kept = {name: value for name, value in tensors.items() if "patch_embed" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    names = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    )
    names += (
        "head_dim",
        "rms_norm_eps",
        "tie_word_embeddings",
        "max_position_embeddings",
        "rope_parameters",
    )
    (folder / "config.json").write_text(
        json.dumps({"model_type": "qwen2", **{name: config[name] for name in names}})
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((exported / name).read_bytes())
    for other in (run_dir, exported):
        report = check(other, folder, prompt=QUESTION, new_tokens=5)
        assert report.same, report.lines
        assert "greedy tokens: the first 5 of 5 agree" in report.lines


def test_code_of_other_folders_is_not_run(exported, tmp_path):
    folder = copy(exported, tmp_path / "foreign", dict)
    (folder / "modeling_elva.py").write_text("raise SystemExit('ran')\n")
    with pytest.raises(ConvertError, match=r"would run modeling_elva\.py"):
        open_side(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConvertError, match="type bert cannot be checked"):
        open_side(folder)


@pytest.mark.parametrize("reference", ["sub/evil.Model", "someone/else--evil.Model", "evil.Model"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "other_config.json"])
def test_code_that_settings_name_is_not_run(exported, tmp_path, reference, name):
    folder = copy(exported, tmp_path / "foreign", dict)
    (folder / "sub").mkdir()
    (folder / "sub" / "evil.py").write_text("raise SystemExit('ran')\n")
    file = folder / name
    settings = json.loads(file.read_text()) if file.exists() else {}
    settings["nested"] = [{"auto_map": {"AutoTokenizer": [None, reference]}}]
    file.write_text(json.dumps(settings))
    with pytest.raises(ConvertError, match=rf"would run .*{reference} \(named by {name}\)"):
        open_side(folder)
    open_side(folder, trust_remote_code=True)


@pytest.mark.parametrize("name", ["custom_generate/generate.py", "a/b/c.py", "elva_code.py"])
def test_code_that_nothing_names_is_not_run(exported, tmp_path, name):
    """Transformers runs custom_generate/generate.py of any folder whose code is trusted."""
    folder = copy(exported, tmp_path / "foreign", dict)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("raise SystemExit('ran')\n")
    with pytest.raises(ConvertError, match=f"would run {name}, not written by"):
        open_side(folder)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_kernels_of_other_repositories_are_not_loaded(exported, tmp_path, key):
    def named(value):
        folder = copy(exported, tmp_path / value.replace("/", "-"), dict)
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | {"text": {key: value}}))
        return folder

    with pytest.raises(ConvertError, match="would run someone/kernel"):
        open_side(named("someone/kernel"))
    open_side(named("sdpa"))


def test_kl_divergence_greedy_decoding_and_synthetic_frames():
    rng = np.random.default_rng(0)
    p, q = rng.normal(size=(2, 3, 7))
    prob_p, prob_q = (
        np.exp(p) / np.exp(p).sum(-1, keepdims=True),
        np.exp(q) / np.exp(q).sum(-1, keepdims=True),
    )
    np.testing.assert_allclose(kl(p, q + 3), (prob_p * np.log(prob_p / prob_q)).sum(-1), atol=1e-12)
    assert greedy(lambda ids: np.eye(10)[(ids[-1] + 3) % 10], [1], 3) == (4, 7, 0)
    frames = synthetic_frames()
    assert len({frame.shape for frame in frames}) == 1
    assert len(np.unique([frame.tobytes() for frame in frames])) == len(frames)


def test_an_endless_prompt_is_refused_before_anything_is_read():
    with pytest.raises(ConvertError, match="the prompt has 200,000 characters; compare with a sho"):
        check("nowhere", "nowhere", prompt="x" * 200_000)


def test_different_survivors_and_answers_fail_the_check(tmp_path):
    from elva_jax.evaluation.compare import compare

    logits = np.zeros((3, 5), np.float32)
    a = Answered(ids=(1, 2), index=np.array([0, 2, 3]), logits=logits, tokens=(1, 2, 3), length=4)
    assert compare(a, a, tolerance=1e-4).same
    for other in (
        replace(a, ids=(1, 3)),
        replace(a, index=np.array([0, 1, 3])),
        replace(a, tokens=(1, 2, 4)),
        replace(a, tokens=(1, 2)),
        replace(a, index=a.index[:2], logits=logits[:2]),
        replace(a, logits=logits + np.nan),
    ):
        assert not compare(a, other, tolerance=1e-4).same


def test_commands(run_dir, exported, tmp_path, capsys):
    from elva_jax.cli import main

    assert (
        main(["convert", "export", str(run_dir), str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    )
    assert main(["convert", "export", str(run_dir), str(tmp_path / "out")]) == 1
    assert "exists already" in capsys.readouterr().err
    quick = ["--max-new-tokens", "2", "--prompt", QUESTION]
    assert main(["convert", "check", str(exported), str(exported), *quick]) == 0
    out = capsys.readouterr().out
    assert "the first 2 of 2 agree\n" in out
    assert out.endswith("of 255\nthe same\n")
    # bfloat16 differs by more than 1e-4.
    assert main(["convert", "check", str(exported), str(tmp_path / "out"), *quick]) == 1
    assert "NOT the same" in capsys.readouterr().out
    assert (
        main(
            [
                "convert",
                "check",
                str(exported),
                str(tmp_path / "out"),
                *quick,
                "--no-merging",
                "--tolerance",
                "0.5",
            ]
        )
        == 0
    )
    assert (
        main(
            [
                "convert",
                "check",
                str(exported),
                str(exported),
                "--video",
                str(tmp_path / "none.mp4"),
            ]
        )
        == 1
    )
    assert "none.mp4" in capsys.readouterr().err
