"""A tiny MERV learns from its encoders, resumes bitwise and answers; its stages and encoders."""

import copy
import json
import math
import shutil

import jax
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import elva_jax
from elva_jax.checkpoints.restore import load_run
from elva_jax.checkpoints.save import save_weights
from elva_jax.cli import main
from elva_jax.config import schema
from elva_jax.config.load import load
from elva_jax.config.serialize import freeze
from elva_jax.data.batches import conversation_batches
from elva_jax.data.sources import open_examples
from elva_jax.data.tokenizer import load as load_tokenizer
from elva_jax.models.build import parameter_shapes
from elva_jax.models.qwen2 import Qwen2
from elva_jax.parallel.mesh import make_mesh
from elva_jax.tasks.elva_recipe import ELVA
from elva_jax.tasks.initial_weights import initial_weights
from elva_jax.tasks.open_data import open_data
from elva_jax.tasks.registry import make_task
from elva_jax.training import train
from elva_jax.training.metric_writers import read_metrics
from elva_jax.training.setup import set_up
from elva_jax.utils.trees import flatten_paths, unflatten_paths

STEPS, IMAGES = 60, 8
TOWER = "patch_embed/tower_"


@pytest.fixture(scope="module")
def config_file():
    from pathlib import Path

    return str(Path(__file__).parents[2] / "configs" / "merv.py")


def miniature(config_file, data_dir, siglip):
    """`configs/merv.py:recipe=full,llm=tiny` still smaller, on a few images."""
    c = load(f"{config_file}:recipe=full,llm=tiny")
    c.data_dir, c.log.every, c.log.tensorboard = str(data_dir), 3, False
    c.curriculum = ("align",)
    c.checkpoint.update(every=STEPS - 2, keep=2)
    c.model.update(vocab_size=512, hidden_size=32, intermediate_size=48, num_layers=1, head_dim=8)
    c.model.merv.update(fusion_width=16, grid=2)
    for encoder in (c.teacher, *c.encoders.values()):
        encoder.update(
            image_size=32, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2
        )
    c.encoders.siglip.init_from = str(siglip)
    stage = c.stages.align
    stage.steps, stage.batch_size = STEPS, IMAGES
    stage.optimizer.learning_rate, stage.optimizer.muon_learning_rate = 3e-2, 0.05
    stage.data.update(
        captions=False, seq_len=56, max_patches=8, max_frames=2, max_turns=1, pack=False
    )
    with c.unlocked():
        stage.data.mixture = {"images": schema.source(str(captioned(data_dir)))}
    return c


def captioned(data_dir):
    """A file of LLaVA's format with images of moving_shapes and the longest caption of each."""
    file = data_dir / "captions.json"
    if not file.exists():
        source = schema.source("moving_shapes/easy", "image", tasks=("caption",))
        examples, records = open_examples(source, data_dir), []
        for example in (examples[k] for k in range(IMAGES)):
            (data_dir / f"{example.key}.png").write_bytes(example.media[0].source)
            answer = max((turn.answer for turn in example.turns), key=len)
            turns = [("human", "<image>\nDescribe the image."), ("gpt", answer)]
            said = [{"from": role, "value": text} for role, text in turns]
            records.append({"image": f"{example.key}.png", "conversations": said})
        file.write_text(json.dumps(records))
    return file


@pytest.fixture(scope="module")
def siglip(config_file, data_dir, tmp_path_factory):
    """A SigLIP of random weights: its folder, and its parameters by path."""
    config = miniature(config_file, data_dir, "")
    config.curriculum, config.encoders.siglip.init_from = ("teacher",), ""
    folder, rng = tmp_path_factory.mktemp("siglip"), np.random.default_rng(0)
    params = {
        path: rng.normal("scale" in path, 0.05, shape).astype(np.float32)
        for path, shape in parameter_shapes(config, "vision").items()
    }
    save_weights(folder, unflatten_paths(params), freeze(config), "teacher")
    return folder, {path.removeprefix("vision/"): leaf for path, leaf in params.items()}


@pytest.fixture(scope="module")
def config(config_file, data_dir, siglip):
    return miniature(config_file, data_dir, siglip[0])


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """Its first stage, trained on questions."""
    workdir = tmp_path_factory.mktemp("merv")
    assert train.run(config, workdir, ELVA) == 0
    return workdir


def blind_loss(config, data_dir):
    """The least mean loss of the answers without seeing the images: the entropy of the choice."""
    tokenizer = load_tokenizer(data_dir / "tokenizer")
    batches = conversation_batches(freeze(config), "align", tokenizer)
    layout = next(batches)["layout"]
    batches.close()
    learned = layout.loss_weight > 0
    captions = [tuple(row[seen]) for row, seen in zip(layout.target, learned, strict=True)]
    assert len(set(captions)) == IMAGES
    return IMAGES * math.log(IMAGES) / learned.sum()


def test_it_learns_what_only_the_encoders_show(run, config, data_dir, stage_of):
    floor = blind_loss(config, data_dir)
    losses = [line["generation"] for line in read_metrics(run / "align")]
    assert losses[-1] < 0.5 * floor
    # The same training with each image's features at another answer.
    step, state, setup = stage_of(freeze(config), "align", STEPS)
    batches = open_data(setup.task, load_tokenizer(data_dir / "tokenizer")).open_batches()
    rng, shuffled = np.random.default_rng(0), []
    for _ in range(STEPS):
        batch = next(batches)
        batch["patches"] = rng.permutation(batch["patches"])
        state, metrics = step(state, {}, batch)
        shuffled.append(metrics["generation"])
    batches.close()
    assert np.mean(shuffled[-3:]) > 0.9 * floor


def test_encoders_start_from_their_own_weights_and_stay(run, siglip):
    saved = [run / "align" / "checkpoints" / str(step) for step in (STEPS - 2, STEPS)]
    before, after = (flatten_paths(load_run(step).params["elva"]) for step in saved)
    for path, leaf in siglip[1].items():
        np.testing.assert_array_equal(after[f"{TOWER}siglip/{path}"], leaf.astype("bfloat16"))
    for path, leaf in after.items():
        assert np.array_equal(leaf, before[path]) == path.startswith(TOWER), path


def test_the_second_stage_continues_from_everything_the_first_has_trained(run, config):
    both = copy.deepcopy(config)
    both.curriculum = ("align", "finetune")
    setup = set_up(make_task(both, "finetune"), make_mesh(both.mesh), 1)
    told: list[str] = []
    got = initial_weights(setup, run, told.append)
    trained = flatten_paths({"elva": load_run(run / "align").params["elva"]})
    assert got.keys() == trained.keys() == flatten_paths(setup.shapes.params).keys()
    for path, leaf in trained.items():
        np.testing.assert_array_equal(got[path], leaf, err_msg=path)
    (line,) = told
    assert "fresh" not in line


def test_it_resumes_bitwise(run, config, tmp_path, runs):
    """A run whose last step is lost continues from the one before, and ends where it ended."""
    cut = tmp_path / "cut"
    shutil.copytree(run, cut)
    shutil.rmtree(cut / "align" / "checkpoints" / str(STEPS))
    (cut / "align" / "finished.json").unlink()
    assert train.run(config, cut, ELVA) == 0
    assert runs.differences(cut, run, ["align"]) == []


def test_it_answers_and_is_evaluated(run, data_dir):
    model = elva_jax.load(run)
    records = json.loads(captioned(data_dir).read_text())
    images = [str(data_dir / record["image"]) for record in records]
    answers = [record["conversations"][1]["value"] for record in records]
    told = [model.answer(image, "Describe the image.", max_new_tokens=32) for image in images]
    assert told == answers
    asked = [
        {"image": image, "question": "Describe the image.", "answer": answer}
        for image, answer in zip(images, answers, strict=True)
    ]
    (data_dir / "own.json").write_text(json.dumps(asked))
    settings = elva_jax.BenchmarkConfig(max_new_tokens=32)
    own = elva_jax.load_own(data_dir / "own.json")
    (evaluation,) = elva_jax.evaluate_benchmarks(model, [own], config=settings)
    responses = [grade.response for grade in evaluation.grades["generated"]]
    assert len(responses) == IMAGES
    again = model.answer(images[0], responses[0].question.prompt, max_new_tokens=32)
    assert responses[0].text == again


def test_its_decoder_is_exported_as_a_language_model(run, tmp_path, capsys):
    assert main(["convert", "export", str(run), str(tmp_path / "decoder")]) == 0
    assert capsys.readouterr().out.startswith("the decoder alone, as a Qwen2ForCausalLM: ")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "decoder", dtype="float32")
    ids = np.arange(3, 15, dtype=np.int32)[None]
    saved = load_run(run)
    decoder = Qwen2(freeze(saved.config).model)
    where = np.arange(ids.shape[1], dtype=np.int32)[None]
    params = {"params": saved.params["elva"]["decoder"]}
    ours = jax.jit(decoder.apply)(params, ids, where, np.ones_like(ids))
    with torch.no_grad():
        logits = theirs(torch.tensor(ids, dtype=torch.long)).logits.numpy()
    np.testing.assert_allclose(ours, logits, atol=1e-4)
    assert load_tokenizer(tmp_path / "decoder").eos_token == "<|im_end|>"
