"""Evaluations on held-out data while a stage trains."""

import io
import json
import math
import os
import signal
import typing

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from rich.console import Console

from elva_jax.checkpoints.restore import load_run
from elva_jax.config import schema, validate_teacher
from elva_jax.config.load import resolve
from elva_jax.config.stage_schema import Evaluator
from elva_jax.config.validate import MEASURED
from elva_jax.data.example import Turn
from elva_jax.data.tokenizer import load
from elva_jax.errors import ConfigError
from elva_jax.models.build import vision_tower
from elva_jax.tasks.elva_recipe import ELVA
from elva_jax.tasks.evaluators import accuracy, loss, merging, retrieval
from elva_jax.tasks.evaluators.base import Answer, Candidate, Frames, Observations
from elva_jax.tasks.evaluators.held_out import candidates
from elva_jax.tasks.evaluators.pairs import recall
from elva_jax.tasks.evaluators.registry import EVALUATORS
from elva_jax.tasks.open_data import open_data
from elva_jax.tasks.registry import make_task
from elva_jax.training.best_weights import BestWeights, smaller_is_better
from elva_jax.training.metric_writers import read_metrics
from elva_jax.training.train import run

STEPS = 6


def held_out(tiny_run, data_dir, arg="sft", stage="sft", **settings):
    """A run of six steps, saved every three, evaluated every two on questions with options."""
    config = tiny_run.get_config(arg)
    config.data_dir = str(data_dir)
    config.checkpoint.update(every=3, keep=0)
    config.log.tensorboard = False
    for each in config.stages.values():
        each.steps = STEPS
    eval_ = config.stages[stage].eval
    eval_.update({"every": 2, "examples": 5, **settings})
    eval_.mixture.held_out = schema.source(
        "moving_shapes/easy", "train[18:]", tasks=("open", "caption")
    )
    return config


def smallest(config):
    """The same run with a model that is traced and compiled soon."""
    names = ("merge_layers", "merge_policies", "merge_thresholds", "merge_ratios")
    config.model.update(num_layers=1, **dict.fromkeys(names, ()))
    config.stages.sft.merging = False
    config.stages.sft.optimizer.name = "adamw"
    return config


class Interrupting(io.StringIO):
    """A terminal that acts once, when a text is printed."""

    def __init__(self, text, act):
        super().__init__()
        self._text, self._act = text, act

    def write(self, text):
        written = super().write(text)
        if self._text in self.getvalue():
            self._text = "\0"
            self._act()
        return written


def fall():
    raise RuntimeError("the machine fell")


def stop():
    os.kill(os.getpid(), signal.SIGTERM)


def check_copies(folder, kept, scalars, evaluated):
    """The mirror has the best weights, and TensorBoard the numbers of every evaluation."""
    mirrored = load_run(folder / "mirror" / "sft.best")
    assert mirrored.step == kept.step
    jax.tree.map(np.testing.assert_array_equal, mirrored.params, kept.params)
    assert {step: value for step, name, value in scalars if name == "eval/loss"} == {
        step: pytest.approx(line["eval/loss"], rel=1e-6)  # events have single precision
        for step, line in evaluated.items()
    }


def test_training_is_bitwise_the_same_also_when_interrupted(tiny_run, runs, data_dir, tmp_path):
    """Without evaluations; with them; also with SIGTERM in the first and a crash after the next."""
    config = smallest(held_out(tiny_run, data_dir, keep_best="loss", better="larger"))
    plain = config.copy_and_resolve_references()
    plain.stages.sft.eval.every = 0
    assert run(plain, tmp_path / "plain", ELVA) == 0
    told = io.StringIO()
    shown = config.copy_and_resolve_references()
    shown.log.tensorboard = True
    shown.checkpoint.mirror = str(tmp_path / "mirror")
    assert run(shown, tmp_path / "whole", ELVA, console=Console(file=told, width=200)) == 0
    stopping = Interrupting("sft 2/6", stop)
    assert run(config, tmp_path / "cut", ELVA, console=Console(file=stopping, width=200)) == 75
    assert "sft: step 2 is evaluated at the next start" in stopping.getvalue()
    falling = Console(file=Interrupting("sft 4: held out", fall), width=200)
    with pytest.raises(RuntimeError, match="fell"):
        run(config, tmp_path / "cut", ELVA, console=falling)
    assert runs.newest(tmp_path / "cut", "sft") == 3
    assert run(config, tmp_path / "cut", ELVA) == 0
    assert runs.differences(tmp_path / "cut", tmp_path / "whole", ["sft"]) == []
    assert runs.differences(tmp_path / "plain", tmp_path / "whole", ["sft"]) == ["sft: metrics"]

    lines = read_metrics(tmp_path / "whole" / "sft")
    evaluated = {line["step"]: line for line in lines if "eval/loss" in line}
    assert sorted(evaluated) == [2, 4, 6]
    assert [line for line in runs.reports(tmp_path / "whole", "sft") if "loss" in line] == (
        runs.reports(tmp_path / "plain", "sft")
    )
    for line in evaluated.values():
        assert line["eval/answers"] > line["eval/unreadable"] == 0
        assert line["eval/seconds"] > 0
        assert 0 <= line["eval/choice"] <= 1
        assert "eval/loss/caption" in line
    best = max(evaluated, key=lambda step: evaluated[step]["eval/loss"])
    assert "best so far" in told.getvalue()
    for name in ("whole", "cut"):
        kept = load_run(tmp_path / name / "sft.best")
        assert (kept.step, kept.stage) == (best, "sft")
        assert kept.tokenizer_dir.is_dir()
        steps = tmp_path / name / "sft.best" / "checkpoints"
        assert [entry.name for entry in steps.iterdir()] == [str(best)]
    check_copies(tmp_path, kept, runs.tensorboard_scalars(tmp_path / "whole" / "sft"), evaluated)
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["evaluate"] > 0
    assert 0 < summary["evaluate_share"] < 1
    assert summary["stages"]["sft"]["eval/loss"] == evaluated[6]["eval/loss"]
    assert summary["stages"]["sft"]["loss"] == lines[-2]["loss"]
    assert "evaluating" in told.getvalue()


def forget_wrong_options(rows):
    """Sets the loss weights of wrong options to 0, and returns the sum of the others."""
    weight_BxS = rows.arrays["layout"].loss_weight
    for weight_S, found, lengths in zip(weight_BxS, rows.candidates, rows.lengths, strict=True):
        places = np.split(np.flatnonzero(weight_S), np.cumsum(lengths)[:-1])
        for candidate, place in zip(found, places, strict=False):
            weight_S[place] *= candidate.right
    return weight_BxS.sum()


def test_numbers_are_those_of_the_training_loss(tiny_run, data_dir, stage_of):
    """Over the same rows; read once, compiled once, and the same at every call."""
    config = held_out(
        tiny_run, data_dir, "teacher,image", "image", evaluators=("loss", "retrieval", "merging")
    )
    config.model.update(num_layers=1, merge_layers=(0,))
    _, state, setup = stage_of(config, "image")
    tower, side = vision_tower(setup.task.config), config.teacher.image_size
    pixels = np.zeros((1, side, side, 3), np.float32)
    teacher = jax.jit(tower.init)(jax.random.key(1), pixels)["params"]
    evaluator = open_data(setup.task, load(data_dir / "tokenizer")).make_evaluator(
        setup, {"teacher": teacher}
    )
    values = evaluator(state.params)
    assert evaluator(state.params) == values
    batches = list(evaluator._held_out.batches())
    loss_of, weights, terms = jax.jit(setup.task.loss), [], []
    for rows in batches:
        weights.append(forget_wrong_options(rows))
        terms.append(loss_of(state.params, {"teacher": teacher}, rows.arrays)[1]["generation"])
    np.testing.assert_allclose(values["loss"], np.average(terms, weights=weights), rtol=1e-5)
    assert values["answers"] == sum(len(row) for rows in batches for row in rows.candidates)
    assert 0 <= values["retrieval"] <= values["retrieval/video"] <= 1
    assert np.isfinite(values["merging/loss"])
    assert -1 <= values["merging/choice"] <= 1


def test_a_siglip_is_measured_on_held_out_captions(tiny_run, data_dir, stage_of):
    """Six pairs in rows of four: the loss is that of one batch of six."""
    config = held_out(
        tiny_run, data_dir, "teacher", "teacher", evaluators=validate_teacher.EVALUATORS, examples=6
    )
    _, state, setup = stage_of(config, "teacher")
    evaluator = open_data(setup.task, load(data_dir / "tokenizer")).make_evaluator(setup, {})
    values = evaluator(state.params)
    assert evaluator(state.params) == values
    batches = [rows.arrays for rows in evaluator._held_out.batches()]
    assert [rows["number"].tolist() for rows in batches] == [[0, 1, 2, 3], [4, 5, -1, -1]]
    whole = {name: np.concatenate([rows[name] for rows in batches])[:6] for name in batches[0]}
    loss, terms = jax.jit(setup.task.loss)(state.params, {}, whole)
    np.testing.assert_allclose(values["loss"], loss, rtol=1e-5)
    assert len({row.tobytes() for row in whole["token_ids"]}) == 6
    assert values["retrieval"] == pytest.approx(float(terms["match_accuracy"]))
    assert (values["pairs"], values["unreadable"]) == (6, 0)


def test_clips_with_one_caption_share_it():
    clips = np.float32([[1, 0], [0.9, 0.1], [0, 1]])
    captions = np.float32([[2, 0], [3, 0], [1, 1.5]])
    assert recall(clips, captions, np.array([0, 0, 1])) == 1.0
    assert recall(clips, captions, np.arange(3)) == pytest.approx(2 / 3)
    assert recall(captions, clips, np.array([0, 0, 1])) == 1.0


def answer(example, turn, option, right, nll, family="color", tokens=2, exact=False):
    candidate = Candidate(example=example, turn=turn, option=option, right=right, family=family)
    return Answer(candidate=candidate, nll=nll, tokens=tokens, exact=exact)


MERGED = (
    answer(0, 0, 0, False, 3.0),
    answer(0, 0, 1, True, 1.0, exact=True),
    answer(0, 1, 0, True, 5.0),
    answer(0, 1, 1, False, 4.0),
    answer(1, 0, -1, True, 12.0, "count", tokens=4),
)
WHOLE = (*MERGED[:2], answer(0, 1, 0, True, 3.0), *MERGED[3:])


def test_each_evaluator_by_hand():
    frames = Frames(  # the second frame is nearest to the third, of the same example
        ours={"a": np.float32([[1, 0], [0, 1], [0.1, 0.9]])},
        theirs={"a": np.float32([[1, 0], [0.2, 0.9], [0, 1]])},
        example=np.array([0, 1, 1]),
    )
    observed = Observations(answers={True: MERGED, False: WHOLE}, merging=True, frames=frames)
    assert dict(loss.evaluate(observed)) == {
        "loss": 18 / 8,
        "loss/color": 6 / 4,
        "loss/count": 12 / 4,
    }
    assert dict(accuracy.evaluate(observed)) == {
        "exact": 1 / 3,
        "exact/color": 1 / 2,
        "exact/count": 0.0,
        "choice": 1 / 2,
        "choice/color": 1 / 2,
    }
    assert dict(merging.evaluate(observed)) == {
        "merging/loss": 18 / 8 - 16 / 8,
        "merging/exact": 0.0,
        "merging/choice": 1 / 2 - 1,
    }
    assert dict(retrieval.evaluate(observed)) == {"retrieval": 2 / 3, "retrieval/video": 1.0}
    # A second teacher tells the two frames apart that the first one does not, and no examples.
    apart = np.float32([[0, 1], [1, 0], [0, 1]])
    frames.ours["b"] = frames.theirs["b"] = apart
    assert dict(retrieval.evaluate(observed)) == {
        "retrieval": 1.0,
        "retrieval/video": 1.0,
        "retrieval/frame/a": 2 / 3,
        "retrieval/video/a": 1.0,
        "retrieval/frame/b": 2 / 3,
        "retrieval/video/b": 1.0,
    }


def test_options_are_texts_or_letters_and_without_a_right_one_not_scored():
    def scored(answer, *options):
        turn = Turn("Which?", answer, task="choice", options=options)
        return [(t.answer, c.option, c.right) for t, c in candidates(0, (turn,), options=True)]

    assert scored("red", "blue", "red") == [("blue", 0, False), ("red", 1, True)]
    assert scored("A", "blue", "red") == [("A", 0, True), ("B", 1, False)]
    assert scored("green", "blue", "red") == [("green", -1, True)]
    assert scored("red", "red", "red") == [("red", -1, True)]
    assert scored("red") == [("red", -1, True)]


def test_tables_name_the_same_evaluators():
    assert tuple(EVALUATORS) == typing.get_args(Evaluator) == tuple(MEASURED)
    assert set(validate_teacher.EVALUATORS) < set(EVALUATORS)
    assert [smaller_is_better(name, "auto") for name in ("loss/color", "merging/loss")] == [
        True
    ] * 2
    assert not smaller_is_better("exact", "auto")
    assert smaller_is_better("exact", "smaller")


@pytest.mark.parametrize(
    ("stage", "key", "value", "message"),
    [
        ("teacher", "every", 2, "eval.evaluators: accuracy measures answers, which a stage of"),
        ("teacher", "evaluators", ("merging", "loss"), "eval.evaluators: merging measures answers"),
        ("sft", "evaluators", (), "eval.evaluators: names none"),
        ("sft", "evaluators", ("retrieval",), "eval.evaluators: retrieval measures the contra"),
        ("sft", "evaluators", ("speed",), "eval.evaluators: 'speed' is not one of loss, accuracy"),
        ("sft", "keep_best", "speed", "eval.keep_best: 'speed' is none of loss, exact, choice"),
        ("sft", "mixture.own", schema.source("a.json", "x"), "mixture.own.split: 'x' is a split"),
    ],
)
def test_what_cannot_be_measured_is_refused(tiny_run, stage, key, value, message):
    config = tiny_run.get_config("teacher,sft")
    config.stages[stage].eval.every = 2
    group, _, name = f"eval.{key}".rpartition(".")
    target = config.stages[stage]
    for part in group.split("."):
        target = target[part]
    target[name] = value
    with pytest.raises(ConfigError) as error:
        resolve(config)
    assert f"stages.{stage}.{'' if message.startswith('eval') else 'eval.'}{message}" in str(
        error.value
    )


def test_files_need_held_out_data_of_their_own(tiny_run):
    config = tiny_run.get_config("sft")
    config.stages.sft.data.mixture = ConfigDict({"own": schema.source("own.json")})
    config.stages.sft.eval.every = 2
    with pytest.raises(ConfigError, match=r"names no held-out data, and own\.json has no split"):
        resolve(config)


def test_a_number_that_is_not_measured_cannot_be_kept(tiny_run, data_dir, tmp_path):
    task = make_task(held_out(tiny_run, data_dir, keep_best="loss/colour"), "sft")
    kept = BestWeights(task, tmp_path, report=print, copy=print)
    assert not kept.offer(2, math.nan, None)
    with pytest.raises(ConfigError, match=r"has no number 'loss/colour'; it has loss, exact$"):
        kept.value_of({"loss": 1.0, "exact": 0.0})
