"""The weights of MERV's encoders: in Python, in traces, and on the command line."""

import json

import jax
import numpy as np
import pytest

from elva_jax import testing
from elva_jax.checkpoints.save import save_weights
from elva_jax.cli import main
from elva_jax.config import schema
from elva_jax.config.serialize import config_to_dict, freeze
from elva_jax.errors import ConfigError
from elva_jax.inference import fusion
from elva_jax.inference.model import ElvaModel
from elva_jax.inference.trace import MediumFacts
from elva_jax.models.elva import Elva
from elva_jax.models.towers.build import make_tower
from elva_jax.video.layout import Text, TokenLayout, build_layout
from elva_jax.video.resize import LazyFrame

SIZE, SLOTS, GRID, WIDTH = 16, 2, 2, 6  # no pooling: the grids of the encoders are MERV's


def merv_config(fusion="attention"):
    """A MERV that sees four frames of 16 pixels with two encoders."""
    config = testing.tiny_config(
        patch_embed="merv", merge_layers=(), merge_policies=(), merge_thresholds=(), merge_ratios=()
    )
    config.stages.video.merging = False
    tower = dict(image_size=SIZE, patch_size=8, hidden_size=12, intermediate_size=16)
    tower |= dict(num_layers=2, num_heads=2)
    for name, changes in {
        "still": {},
        "clip": {"kind": "vivit", "num_frames": 4, "tubelet": 2, "features": "last"},
    }.items():
        config.encoders[name] = schema.tower()
        config.encoders[name].update(tower | changes)
    config.model.merv.update(
        encoders=("still", "clip"),
        num_frames=4,
        slots=SLOTS,
        grid=GRID,
        fusion=fusion,
        fusion_width=WIDTH,
    )
    return config


@pytest.fixture(scope="module")
def merv():
    config = merv_config()
    params = testing.random_params(freeze(config).model, scale=0.3)
    return ElvaModel(config, {"elva": params}, testing.tiny_tokenizer())


def by_hand(model, frames):
    """softmax(q . k_e / sqrt(W)) over the encoders' mean projected features, in float64."""
    embed, means = jax.tree.map(np.float64, model.engine.weights.visual), []
    squares = np.stack([LazyFrame.from_array(each).at((SIZE, SIZE)) for each in frames])
    pixels = squares.astype(np.float32) / 127.5 - 1
    for (name, tower), seen in zip(
        model.model_config.encoders, (pixels[::2], pixels[None]), strict=True
    ):
        apply = jax.jit(lambda params, seen, tower=tower: make_tower(tower).apply(params, seen))
        features = apply({"params": model.engine.weights.visual[f"tower_{name}"]}, seen)
        x = np.asarray(getattr(features, tower.features), np.float64).reshape(-1, 12).mean(axis=0)
        projector = embed[f"projector_{name}"]
        means.append(x @ projector["kernel"] + projector["bias"])
    attention = embed["fusion"]
    q = attention["query"][0] @ attention["q_kernel"] + attention["q_bias"]
    scores = (np.stack(means) @ attention["k_kernel"] + attention["k_bias"]) @ q / np.sqrt(WIDTH)
    weights = np.exp(scores - scores.max())
    return dict(zip(("still", "clip"), weights / weights.sum(), strict=True))


def test_weights_of_every_video_are_the_formulas(merv):
    videos = [testing.tiny_video(color=color) for color in ("red", "green")]
    found = merv.fusion_weights(videos)
    for video, weights in zip(videos, found, strict=True):
        assert weights == pytest.approx(by_hand(merv, video), abs=1e-5)
    assert abs(found[0]["still"] - found[1]["still"]) > 1e-3, "the videos do not matter"


def test_traces_have_the_weights_of_their_own_pass(merv, monkeypatch):
    """The encoders do not run again for them."""
    video = testing.tiny_video()
    (expected,) = merv.fusion_weights(video)
    monkeypatch.setattr(fusion, "_program", None)
    trace = merv.trace(video, "What?", max_new_tokens=2)
    (medium,) = trace.media
    assert medium.fusion_weights == pytest.approx(expected, abs=1e-6)
    assert (medium.frames, medium.sizes) == (4, ((SIZE, SIZE),))
    assert trace.visual_tokens == SLOTS * GRID**2
    (found,) = trace.to_dict()["media"]
    assert found["fusion_weights"] == pytest.approx(expected, abs=1e-6)


def test_chunks_of_a_prompt_part_no_clip(merv, monkeypatch):
    videos = [testing.tiny_video(color=color) for color in ("red", "green")]
    totals, expected = [], merv.fusion_weights(videos)
    for chunk in (0, 4):  # a clip has 8 patches
        monkeypatch.setattr(merv.engine, "prefill_chunk", chunk)
        (row,) = merv.prefill([tuple(merv.read_all(videos))]).fusion_weights
        for found, weights in zip(row, expected, strict=True):
            assert found == pytest.approx(weights, abs=1e-6)
        scores = merv.score(videos, "What is it?", ["red", "blue"])
        totals.append([score.total for score in scores])
    np.testing.assert_allclose(*totals, rtol=1e-5)


@pytest.mark.parametrize("survivor", ["first", "last"])
def test_merged_clips_answer_as_the_forward_pass_of_training(survivor):
    """Frames of a clip merge, at the first or the last of them, in inference as in training."""
    config = merv_config()
    config.model.update(merge_layers=(1,), merge_policies=("ratio",), merge_thresholds=(0.0,))
    config.model.update(merge_ratios=(0.75,), merge_survivor=survivor)
    config.stages.video.merging = True
    params = testing.random_params(freeze(config).model, scale=0.3)
    model = ElvaModel(config, {"elva": params}, testing.tiny_tokenizer())
    (media,) = model.read_all([testing.tiny_video()])
    answer = model.prefill([(media,)]).generate([["What moves?"]], 3)[0][0].tokens
    parts = [*model.prompt_parts("What moves?", (media,)), Text(tuple(answer))]
    layout = build_layout(parts)
    elva = Elva(model.model_config)

    @jax.jit
    def forward(patches, layout):
        out = elva.apply({"params": params}, patches, layout, merging=True)
        return elva.apply({"params": params}, out.hidden, method="head"), out.survivor

    logits, survivors = forward(media.patches[None], TokenLayout.stack([layout]))
    before = np.arange(layout.length - len(answer) - 1, layout.length - 1)
    at_answer = np.asarray(logits)[0, np.asarray(survivors)[0, before]]
    assert at_answer[:, : len(model.tokenizer)].argmax(-1).tolist() == list(answer)
    assert np.asarray(survivors)[0].max() < layout.length - 1, "nothing has merged"


def test_other_models_have_none(model, videos):
    with pytest.raises(ConfigError, match=r"no fusion weights: model.patch_embed is video; they"):
        model.fusion_weights(videos[0])
    assert "fusion_weights" not in MediumFacts(frames=1, sizes=((8, 8),)).to_dict()


@pytest.fixture(scope="module")
def run_dir(merv, tmp_path_factory):
    folder = tmp_path_factory.mktemp("merv")
    save_weights(folder / "video", {"elva": merv.params}, merv.config, "video")
    (folder / "config.json").write_text(json.dumps(config_to_dict(merv.config)))
    merv.tokenizer.save_pretrained(folder / "tokenizer")
    return folder


def test_commands_report_and_draw_the_weights(merv, run_dir, tmp_path, capsys):
    for number, color in enumerate(("red", "green", "blue")):
        file = tmp_path / ("one", "two")[number % 2] / f"{number}.mp4"
        file.parent.mkdir(exist_ok=True)
        testing.write_video(file, testing.tiny_video(color=color))
    report, figure = tmp_path / "fusion.json", tmp_path / "fusion.svg"
    words = ["bench", "fusion", "--checkpoint", str(run_dir), "--videos", str(tmp_path)]
    assert main([*words, "--json", str(report), "--figure", str(figure)]) == 0
    assert "all" in capsys.readouterr().out
    assert "<svg" in figure.read_text()
    saved = json.loads(report.read_text())
    weights = {video["video"]: video["weights"] for video in saved["videos"]}
    for file, found in weights.items():
        assert found == pytest.approx(merv.fusion_weights(file)[0], abs=1e-6)
    (one, two), files = saved["groups"], sorted(weights)
    assert (one["videos"], two["videos"]) == (2, 1)
    mean = np.mean([weights[file]["clip"] for file in files[:2]])
    assert one["encoders"]["clip"] == {"mean": pytest.approx(mean), "low": None, "high": None}

    words = ["generate", "--checkpoint", str(run_dir), "--video", files[0], "--prompt", "What?"]
    assert main([*words, "--max-new-tokens", "2", "--json"]) == 0
    (medium,) = json.loads(capsys.readouterr().out)["media"]
    assert medium["source"] == files[0]
    assert medium["fusion_weights"] == pytest.approx(weights[files[0]], abs=1e-5)
