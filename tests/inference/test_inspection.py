"""Merge maps, what answers take, and the options of the commands that show them."""

import io
import json

import av
import numpy as np
import pytest
from PIL import Image

from elva_jax import testing
from elva_jax.cli import main
from elva_jax.errors import ConfigError, LayoutError
from elva_jax.inference import draw_merges
from elva_jax.ops.merging import MergeLayer, Merging
from elva_jax.video.layout import Kind

QUESTION = "What colour is the circle?"
TWICE = Merging((MergeLayer(1, threshold=0.5), MergeLayer(2, threshold=0.9)))


def merged_by_numpy(hidden, rule, sizes):
    """Sizes after a merging layer, cell by cell along time, from the hidden states before it."""
    block = hidden.block(rule.before_layer)
    layout, x = block.layout, hidden.states[rule.before_layer].astype(np.float64)
    after = np.zeros_like(sizes)
    for row, column in np.ndindex(sizes.shape[1:]):
        waiting = 0
        times = np.flatnonzero(sizes[:, row, column])
        tokens = [
            np.flatnonzero(
                (layout.kind == Kind.PATCH)
                & (layout.frame == time)
                & (layout.cell[:, :2] == (row, column)).all(-1)
            ).item()
            for time in times
        ]
        for n, (time, token) in enumerate(zip(times, tokens, strict=True)):
            waiting += sizes[time, row, column]
            if n + 1 < len(times):
                here, there = x[token], x[tokens[n + 1]]
                cosine = here @ there / np.linalg.norm(here) / np.linalg.norm(there)
                if cosine > rule.threshold:
                    continue
            after[time, row, column], waiting = waiting, 0
    return after


@pytest.fixture(scope="module")
def merges(model, videos):
    return model.merge_map(videos[2], merging=TWICE)


def test_a_merge_map_is_the_rule_read_along_every_cell(model, videos, merges):
    hidden = model.hidden_states(videos[2], "?", merging=TWICE)
    sizes = np.ones((4, 4, 3), int)
    for rule, layer in zip(TWICE.layers, merges.layers, strict=True):
        sizes = merged_by_numpy(hidden, rule, sizes)
        np.testing.assert_array_equal(np.stack(layer.sizes), sizes)
        assert layer.before_layer == rule.before_layer
        assert layer.kept == (sizes > 0).sum() < 48
        into = np.stack(layer.into)
        for place, time in np.ndenumerate(into):
            assert sizes[(time, *place[1:])] > 0  # a token that is left
            assert not sizes[place[0] : time, place[1], place[2]].any()  # the next of them
    assert len({int(n) for n in sizes.ravel()}) >= 3
    for frame, given in zip(merges.frames, videos[2], strict=True):
        np.testing.assert_array_equal(frame, given)


@pytest.mark.parametrize("layers", ["last", "all"])
def test_the_drawing_is_in_the_files(merges, layers, tmp_path):
    pictures = merges.draw(layers)
    film, sheet = (merges.save(tmp_path / "new" / f"m.{kind}", layers) for kind in ("mp4", "png"))
    with av.open(str(film)) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    height, width = pictures[0].shape[:2]
    whole = np.asarray(Image.open(sheet))
    columns = whole.shape[1] // width
    shown = merges.layers[-1:] if layers == "last" else merges.layers
    scale = 4  # patches of 8 pixels
    edge, wide = 8 * scale, 24 * scale + draw_merges.GAP
    for n, (picture, back, frame) in enumerate(zip(pictures, decoded, merges.frames, strict=True)):
        top, left = (n // columns * (height + 4), n % columns * (width + 4))
        np.testing.assert_array_equal(whole[top : top + height, left : left + width], picture)
        assert back.shape == picture.shape
        for k, layer in enumerate(shown):
            for (row, column), size in np.ndenumerate(layer.sizes[n]):
                top, left = row * edge + draw_merges.CAPTION, column * edge + k * wide
                inside = np.s_[top : top + edge, left : left + edge]
                patch = frame[row * 8 :, column * 8 :][:8, :8].repeat(scale, 0).repeat(scale, 1)
                wanted = patch if size else 0.3 * patch + 0.7 * draw_merges.DARK
                if size > 1:
                    color = draw_merges.color_of(int(size))
                    assert (picture[inside][[0, 1, -1, -2]] == color).all()
                    middle = np.s_[8:24, 8:24]
                    assert (picture[inside][middle] != patch[middle]).any()  # the number
                    border = back[inside][:2].astype(float).mean((0, 1))
                    np.testing.assert_allclose(border, color, atol=70)
                    continue
                assert np.abs(picture[inside] - wanted).max() <= 1
                np.testing.assert_allclose(back[inside].mean((0, 1)), wanted.mean((0, 1)), atol=8)


def test_what_cannot_be_drawn_is_refused(model, videos, merges, tmp_path):
    with pytest.raises(ConfigError, match=r"a film \(.mp4\) or a sheet \(.png\)"):
        merges.save(tmp_path / "m.gif")
    with pytest.raises(ConfigError, match=r"make a sheet of .* at most 16000 are possible"):
        draw_merges.sheet(merges.draw() * 30_000, tmp_path / "m.png")
    with pytest.raises(LayoutError, match="no merging layer acts"):
        model.merge_map(videos[2], merging=False)
    with pytest.raises(LayoutError, match="no videos or images"):
        model.merge_map(None)


def test_traces_of_a_chat_count_the_prompt_around_every_merging_layer(model, videos):
    chat = model.chat(videos[2][:3], max_new_tokens=4)
    first, second = (chat.trace(question) for question in ("What?", "And?"))
    hidden = model.hidden_states(videos[2][:3], "What?", layers=())
    lengths = [hidden.layout.length, *(block.layout.length for block in hidden.blocks[1:])]
    counts = [(merge.before_layer, merge.before, merge.after) for merge in first.merges]
    assert counts == [(1, *lengths[:2]), (2, *lengths[1:])]
    assert first.prompt_tokens == lengths[0] > lengths[1]
    assert first.visual_tokens == (hidden.layout.kind != Kind.TEXT).sum()
    assert first.finish_reason == ("stop" if first.answer.finished else "length")
    assert (first.media[0].frames, first.media[0].sizes) == (3, ((32, 24),))
    assert min(first.seconds[name] for name in ("prefill", "decode")) > 0
    more = second.prompt_tokens - first.prompt_tokens
    assert more == second.merges[0].before - first.merges[0].before > len(first.answer.tokens)
    assert second.seconds["prefill"] == 0  # it continues from the caches
    assert (first.sampling.seed, second.sampling.seed) == (0, 1)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported")
    model.save_pretrained(path / "model")
    testing.write_video(path / "clip.mp4", testing.tiny_video())
    return path


def test_the_commands_print_a_line_of_json_for_each_answer(model, folder, capsys, monkeypatch):
    """With settings of merging that the command names, as in Python."""
    profile = "few=merge_policies=ratio;merge_ratios=(0.8, 0.4)"
    monkeypatch.setattr(model, "merging_profiles", {})
    model.add_merging_profiles(profile)
    with pytest.raises(ConfigError, match="merging: must be true, false or few, got Few"):
        model.chat(merging="Few")
    with pytest.raises(ConfigError, match="few: is there twice"):
        model.add_merging_profiles(profile)
    clip, sheet = str(folder / "clip.mp4"), folder / "merges.png"
    words = ["--checkpoint", str(folder / "model"), "--video", clip, "--max-new-tokens", "4"]
    words += ["--json", "--save-merge-map", str(sheet)]
    words += ["--merging-profile", profile, "--merging", "few"]
    asked = [QUESTION, "What moves?"]
    prompts = [word for prompt in asked for word in ("--prompt", prompt)]
    assert main(["generate", *words, *prompts]) == 0
    lines = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert [line["prompt"] for line in lines] == asked
    for line in lines:
        own = model.trace(clip, line["prompt"], max_new_tokens=4, merging="few")
        assert line["answer"] == own.answer.text
        counts = [(merge["before"], merge["after"]) for merge in line["tokens"]["merging"]]
        assert counts == [(merge.before, merge.after) for merge in own.merges]
        usual = model.trace(clip, line["prompt"], max_new_tokens=4)
        assert counts[1] != (usual.merges[1].before, usual.merges[1].after)
        assert line["finish_reason"] in ("stop", "length")
        assert line["media"] == [{"source": clip, "frames": 4, "sizes": [[32, 32]]}]
        assert line["model"]["checkpoint"] == str(folder / "model")
        assert len(line["model"]["weights_hash"]) == 16
        assert line["sampling"]["seed"] == 0
        assert line["memory"]["host_peak"] > 10**8
        assert {"read", "prefill", "decode", "tokens_per_second"} < line["seconds"].keys()
    assert Image.open(sheet).size == (2 * (128 + 4), 2 * (144 + 4))
    sheet.unlink()
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{asked[0]}\n"))
    assert main(["chat", *words]) == 0
    (said,) = map(json.loads, capsys.readouterr().out.splitlines())
    seconds = lines[0].pop("seconds"), said.pop("seconds")
    assert seconds[1]["read"] > 0
    assert said == lines[0] | {"memory": said["memory"]}
    assert sheet.is_file()
