"""Tests of a teacher's video pre-training: two towers from Hugging Face folders learn clips."""

import itertools
import json

import jax
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from elva_jax.checkpoints.restore import load_run
from elva_jax.config import schema
from elva_jax.config.serialize import freeze
from elva_jax.data.captions import open_captions
from elva_jax.parallel.mesh import make_mesh
from elva_jax.tasks.api import train
from elva_jax.tasks.initial_weights import frozen_trees
from elva_jax.tasks.open_data import open_data
from elva_jax.tasks.registry import make_task
from elva_jax.training.metric_writers import read_metrics
from elva_jax.training.setup import set_up
from elva_jax.utils.trees import flatten_paths

COLORS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220),
          "white": (240, 240, 240), "yellow": (230, 220, 40), "purple": (140, 40, 160)}  # fmt: skip
PLACES = {"top left": (0, 0), "top right": (0, 1), "bottom left": (1, 0), "bottom right": (1, 1)}
KINDS = list(itertools.product(COLORS, PLACES))  # as many different captions
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "square", "in", "the", "top", "bottom",
         "left", "right", ".", *COLORS]  # fmt: skip
STEPS, FRAMES, SIDE = 40, 2, 32


def write_clips(folder, name, count, seed):
    """`count` clips of every kind: a square that moves a little over noise, as small GIFs."""
    rng = np.random.default_rng(seed)
    records = []
    for number, (color, place) in enumerate(KINDS * count):
        noise = rng.integers(0, 90, (SIDE, SIDE, 3), np.uint8)
        row, column = (16 * at + rng.integers(0, 7) for at in PLACES[place])
        frames = [noise.copy() for _ in range(FRAMES)]
        for t, frame in enumerate(frames):
            frame[row : row + 8, column + t : column + t + 8] = COLORS[color]
        first, *more = map(Image.fromarray, frames)
        first.save(folder / f"{name}{number}.gif", save_all=True, append_images=more, duration=250)
        answer = f"A {color} square in the {place}."
        turns = [
            {"from": "human", "value": "<video>\nWhat is it?"},
            {"from": "gpt", "value": answer},
        ]
        records.append({"video": f"{name}{number}.gif", "conversations": turns})
    (folder / f"{name}.json").write_text(json.dumps(records))
    return str(folder / f"{name}.json")


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """Folders of a SigLIP vision tower and of a BERT with its WordPiece vocabulary."""
    vision, text = (tmp_path_factory.mktemp(name) for name in ("siglip", "bert"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 2}  # fmt: skip
    config = transformers.SiglipVisionConfig(image_size=SIDE, patch_size=8, **sizes)
    transformers.SiglipVisionModel(config).save_pretrained(vision)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), max_position_embeddings=16, **{**sizes, "num_hidden_layers": 1}
    )
    transformers.BertForMaskedLM(config).save_pretrained(text)
    (text / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (text / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    return vision, text


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_run, data_dir, towers):
    """A run of one stage in which both towers start from their folders, its output, held-out clips.

    Updates see the batch in two halves, and so do evaluations.
    """
    folder, (vision, text) = tmp_path_factory.mktemp("clips"), towers
    config = tiny_run.get_config("image")
    config.data_dir = str(data_dir)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_heads": 2}
    config.teacher.update(image_size=SIDE, patch_size=8, num_layers=2, text_length=12, **sizes)
    config.text_tower.update(kind="bert", num_layers=1, max_position=16, pooling="mean", **sizes)
    config.text_tower.vocab_size = len(WORDS)
    config.teacher.init_from, config.text_tower.init_from = str(vision), str(text)
    stage = schema.stage()
    stage.kind, stage.steps, stage.batch_size = "teacher", STEPS, len(KINDS)
    stage.data.num_frames = FRAMES
    stage.data.mixture.clips = schema.source(write_clips(folder, "seen", 4, seed=0))
    stage.contrast.update(loss="infonce", projection=24, remat=False)
    stage.optimizer.update(name="muon", learning_rate=1e-2, muon_learning_rate=0.05, accumulate=2)
    held_out = write_clips(folder, "held_out", 1, seed=1)
    stage.eval.update(every=STEPS // 2, evaluators=("loss", "retrieval"))
    stage.eval.mixture.clips = schema.source(held_out)
    config.stages.videos, config.curriculum = stage, ("videos",)
    config.checkpoint.every = config.log.every = STEPS
    told = []
    assert train(config, folder / "run", progress=told.append) == 0
    return folder / "run", config, "\n".join(told), held_out


def test_it_finds_the_captions_of_held_out_clips(finished):
    """Chance is 1 of 24 in either direction; eight times that is asked for."""
    workdir, config, _, held_out = finished
    config = config.copy_and_resolve_references()
    config.stages.videos.data.mixture.clips.name = held_out
    params, task = load_run(workdir, kind="teacher").params, make_task(config, "videos")
    batches = open_data(task, None).open_batches()
    batch = next(batches)
    batches.close()
    assert len({row.tobytes() for row in batch["token_ids"]}) == len(KINDS)
    _, terms = jax.jit(task.loss)(params, {}, batch)
    assert float(terms["match_accuracy"]) >= 8 / 24
    assert float(terms["caption_accuracy"]) >= 8 / 24
    middle, line, end = read_metrics(workdir / "videos")
    assert line["infonce"] < np.log(24)
    assert line["temperature"] > 0
    assert (middle["step"], end["step"]) == (STEPS // 2, STEPS)
    assert middle["eval/pairs"] == end["eval/pairs"] == len(KINDS)
    np.testing.assert_allclose(end["eval/loss"], terms["infonce"], rtol=1e-4)
    for name, term in (("", "match_accuracy"), ("/caption", "caption_accuracy")):
        assert end[f"eval/retrieval{name}"] == pytest.approx(float(terms[term]))
    assert end["eval/loss"] < middle["eval/loss"]


def test_both_towers_start_from_their_folders(finished, towers):
    _, config, told, _ = finished
    vision, text = towers
    assert f"videos: takes text from {text} (model_type bert)" in told
    assert (
        f"videos: starts from {vision} (model_type siglip_vision_model); fresh: contrast/" in told
    )
    captions = open_captions(freeze(config), str(text), None)
    ids = captions.ids("A red square [SEP] in the top left, far from everything and everyone")
    words = captions.tokenizer.convert_ids_to_tokens(ids)
    assert words[:4] == ["[CLS]", "a", "red", "square"]
    assert (len(ids), words[-1], words.count("[SEP]")) == (12, "[SEP]", 1)


def test_the_result_is_a_teacher(finished, tmp_path):
    workdir, config, _, _ = finished
    config = config.copy_and_resolve_references()
    config.curriculum, config.teacher.init_from = ("image",), str(workdir)
    setup = set_up(make_task(config, "image"), make_mesh(config.mesh), 1)
    frozen = frozen_trees(setup, tmp_path)
    ours, theirs = load_run(workdir, kind="teacher").params["vision"], frozen["teacher"]
    for path, leaf in flatten_paths(ours).items():
        np.testing.assert_array_equal(flatten_paths(theirs)[path], leaf, err_msg=path)
