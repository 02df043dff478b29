"""The runner on real clips: batches, journals, shares and kills."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import shapes

from elva_jax import testing
from elva_jax.errors import ConfigError, DataError, LayoutError, StartError
from elva_jax.evaluation.benchmarks.base import Question
from elva_jax.evaluation.judge.config import JudgeConfig
from elva_jax.evaluation.runner.queries import item_of, query_of, reader
from elva_jax.evaluation.runner.run import evaluate_benchmarks, unreadable
from elva_jax.evaluation.runner.settings import WAYS, BenchmarkConfig
from elva_jax.inference.batches.queries import Group, group_by_media
from elva_jax.inference.batches.reading import read_ahead
from elva_jax.inference.batches.shares import divide, in_turn
from elva_jax.inference.media import Request

QUESTIONS = 23
SMALL = BenchmarkConfig(batch_size=4)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return shapes.write(tmp_path_factory.mktemp("shapes") / "root")


@pytest.fixture(scope="module")
def model():
    return shapes.small_model()


def evaluate(model, root, config=SMALL, **more):
    return evaluate_benchmarks(model, [shapes.BENCHMARK], root, config, **more)[0]


@pytest.fixture(scope="module")
def asked(model, root):
    return evaluate(model, root)


def said(evaluation):
    """What must be equal to the token, and what to the rounding."""
    responses = [grade.response for grade in evaluation.grades["generated"]]
    words = [(r.question.key, r.text, r.finished, r.tokens, r.error) for r in responses]
    numbers = [s.total for r in responses for s in (*r.letters, *r.likelihoods)]
    return words, numbers


def assert_same(a, b):
    words, numbers = said(a)
    assert words == said(b)[0]
    np.testing.assert_allclose(numbers, said(b)[1], rtol=1e-4)
    values = [{k: v.main.value for k, v in each.scores.items()} for each in (a, b)]
    assert values[0] == values[1]


def journals(output):
    return sorted(output.glob(f"{shapes.NAME}/answers/*/answers.jsonl"))


def keys(output):
    lines = [line for path in journals(output) for line in path.read_text().splitlines()[1:]]
    return [json.loads(line)["key"] for line in lines]


def test_unreadable_media_are_named_counted_and_not_scored(asked, root):
    grades = asked.grades["generated"]
    assert len(grades) == QUESTIONS == asked.scores["letter"].main.count + 4
    assert all(scores.statuses["unreadable"] == 4 for scores in asked.scores.values())
    reasons = unreadable(asked)
    assert sum(reasons.values()) == 4
    assert all(str(root / name) in " ".join(reasons) for name in ("missing.mp4", "broken.mp4"))
    for of_way in asked.grades.values():
        assert [g.status for g in of_way].count("unreadable") == 4
    assert list(asked.scores) == [
        "generated", "likelihood", "likelihood_char", "likelihood_token", "letter"
    ]  # fmt: skip
    assert asked.settings["frames"] == 4
    assert asked.settings["merging"] is True
    assert len(asked.settings["weights_hash"]) == 16
    assert len(asked.settings["prompts_hash"]) == 16


def test_answers_do_not_depend_on_the_batch(model, root, asked):
    config = BenchmarkConfig(batch_size=32, answers=("generated",), workers=1)
    alike = evaluate(model, root, config)
    assert said(alike)[0] == said(asked)[0]


def test_a_judge_without_open_answers_is_named_and_not_asked(model, root, caplog):
    judge = JudgeConfig(endpoint="http://127.0.0.1:9/v1", model="m")  # nobody answers there
    evaluate(model, root, BenchmarkConfig(limit=1, answers=("letter",), judge=judge))
    assert f"nothing to do: no question of {shapes.NAME} has an open answer" in caplog.text


@pytest.mark.parametrize("key", ["8-0", "open"])
def test_answers_equal_single_calls(model, asked, key):
    (grade,) = [g for g in asked.grades["generated"] if g.response.question.key == key]
    response, question = grade.response, grade.response.question
    media = [
        model.read_media(
            m.source, frames=1 if m.kind == "image" else m.frames, span=(m.start, m.end)
        )
        for m in question.media
    ]
    (answer,) = model.generate([Request(media, question.prompt)], max_new_tokens=6)
    assert response.text == answer.text
    if question.options:
        letters = model.score(media, question.prompt, "ABC")
        texts = model.score(media, question.text, question.options)
        for ours, theirs in ((response.letters, letters), (response.likelihoods, texts)):
            np.testing.assert_allclose(
                [s.total for s in ours], [s.total for s in theirs], rtol=1e-4
            )


def test_an_interrupted_run_asks_nothing_twice(model, root, asked, tmp_path):
    for most in (4, 9):

        def stop(name, done, total, most=most):
            if done >= most:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            evaluate(model, root, output=tmp_path, progress=stop)
        (path,) = journals(tmp_path)
        with path.open("a") as file:
            file.write('{"key": "0-0", "te')  # what a kill in the midst of a write leaves
    before = keys_of_whole_lines(path)
    assert 9 <= len(before) < QUESTIONS
    seen = []
    done = evaluate(model, root, output=tmp_path, progress=lambda *state: seen.append(state))
    assert seen[-1] == (shapes.NAME, QUESTIONS, QUESTIONS)
    assert keys(tmp_path)[: len(before)] == before
    assert len(set(keys(tmp_path))) == len(keys(tmp_path)) == QUESTIONS
    assert_same(done, asked)
    evaluate(model, root, output=tmp_path, progress=lambda *state: pytest.fail("asked again"))


def keys_of_whole_lines(path):
    lines = path.read_text().split("\n")[1:-1]
    return [json.loads(line)["key"] for line in lines]


def test_processes_share_the_questions(model, root, asked, tmp_path):
    """Two at once, one of which never begins: the other one asks its share, too."""
    found = {}

    def run(index, count):
        found[index, count] = evaluate(model, root, output=tmp_path, process=(index, count))

    threads = [threading.Thread(target=run, args=(index, 3)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(journals(tmp_path)) == 3
    assert sorted(keys(tmp_path)) == sorted(
        {g.response.question.key for g in asked.grades["letter"]}
    )
    assert_same(found[0, 3], asked)
    assert_same(found[1, 3], found[0, 3])
    # Another number of processes finds everything answered.
    assert_same(evaluate(model, root, output=tmp_path), asked)


def start(root, output, index):
    script = Path(__file__).parent / "shapes.py"
    return subprocess.Popen(
        [sys.executable, str(script), str(root), str(output), str(index), "2"],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_killed_process_loses_no_question(root, asked, tmp_path):
    victim = start(root, tmp_path, 1)
    assert victim.stdout.readline().startswith(shapes.NAME)
    os.kill(victim.pid, signal.SIGSTOP)  # alive, and in the middle of its share
    other = start(root, tmp_path, 0)
    assert other.stdout.readline().startswith(shapes.NAME)
    victim.kill()
    victim.wait()
    other.stdout.read()
    assert other.wait() == 0
    assert len(set(keys(tmp_path))) == len(keys(tmp_path)) == QUESTIONS
    texts = {g.response.question.key: g.response.text for g in asked.grades["generated"]}
    for path in journals(tmp_path):
        for line in path.read_text().splitlines()[1:]:
            record = json.loads(line)
            assert record["text"] == texts[record["key"]]


@pytest.fixture(scope="module")
def limited(model, root, tmp_path_factory):
    """The journal of the first four questions."""
    output = tmp_path_factory.mktemp("limited")
    evaluate(model, root, BenchmarkConfig(batch_size=4, limit=4), output=output)
    return output


def test_a_limit_can_be_raised(model, root, limited):
    evaluation = evaluate(model, root, BenchmarkConfig(batch_size=4, limit=5), output=limited)
    assert keys(limited) == ["0-0", "0-1", "1-0", "1-1", "2-0"]
    assert len(evaluation.grades["letter"]) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 2}, "another evaluation .frames: 4, now 2.; choose another output"),
        ({"answers": ("letter",)}, "another evaluation .answers"),
        ({"merging": False}, "another evaluation .merging: True, now False"),
        ({"max_new_tokens": 7}, "another evaluation .max_new_tokens: 6, now 7"),
    ],
)
def test_answers_of_other_settings_are_refused(model, root, limited, changes, message):
    with pytest.raises(DataError, match=message):
        evaluate(model, root, BenchmarkConfig(**changes), output=limited)


def test_answers_of_another_model_are_refused(root, limited):
    with pytest.raises(DataError, match=r"another evaluation \(weights_hash: [0-9a-f]{16}, now"):
        evaluate(shapes.small_model(seed=1), root, output=limited)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"key": "0-0", "hash": "of another prompt"}', "'0-0' is not the one of this benchmark's"),
        ('{"key": "no such", "hash": ""}', "'no such' is not"),
        ('{"key": ', "is damaged .Expecting value"),
        ("[]", "is damaged .not an object"),
    ],
)
def test_damaged_journals_are_refused(model, root, limited, line, message, tmp_path):
    (path,) = journals(limited)[:1]
    copy = tmp_path / path.relative_to(limited)
    copy.parent.mkdir(parents=True)
    lines = path.read_text().splitlines()
    copy.write_text("\n".join([*lines[:2], line, ""]))
    with pytest.raises(DataError, match=f"line 3.*{message}"):
        evaluate(model, root, output=tmp_path)


def test_a_folder_in_use_is_refused(model, root, tmp_path):
    def again(*_):
        evaluate(model, root, output=tmp_path)

    with pytest.raises(StartError, match="is in use by process"):
        evaluate(model, root, output=tmp_path, progress=again)


def test_impossible_settings():
    with pytest.raises(ConfigError, match="answers: 'guess' is unknown; use generated"):
        BenchmarkConfig(answers=("guess",))
    with pytest.raises(ConfigError, match="batch_size=0"):
        BenchmarkConfig(batch_size=0)
    with pytest.raises(ConfigError, match="give output"):
        evaluate_benchmarks(testing.tiny_model(), [], process=(0, 2))


def test_shares_are_even_and_everyones_first_is_another():
    groups = [Group(media=(), items=(k,)) for k in range(1000)]
    shares = divide(groups, 4, 8)
    assert len(shares) == 12  # each of about ten full batches
    assert {len(share.groups) for share in shares} == {83, 84}
    assert sorted(q for share in shares for g in share.groups for q in g.items) == [*range(1000)]
    assert [in_turn(shares, i, 4)[0].name for i in range(4)] == [
        f"{i:04d}-of-0012" for i in (0, 3, 6, 9)
    ]
    assert len(divide(groups[:3], 8, 32)) == 3
    assert len(divide(groups, 2, 1000)) == 2


def question(key, words, options=()):
    return Question(key=key, media=(), prompt="What? " * words, text="What?", options=options)


def test_questions_that_cannot_be_asked_are_refused(model):
    visuals = (model.read_media(testing.tiny_video(20)),)
    for asked, message in (
        (question("long", 4000), "longest sequence is 512"),
        (question("empty", 1, ("red", " ")), "has an empty option"),
        (question("many", 1, ("x",) * 27), "has 27 options, more than there are letters"),
    ):
        with pytest.raises(LayoutError, match=message):
            query_of(model, asked, visuals, WAYS, 16)


def test_media_are_read_once_and_ahead(model, root, monkeypatch):
    read = []
    real = model.read_media

    def watched(source, **more):
        read.append(source)
        return real(source, **more)

    monkeypatch.setattr(model, "read_media", watched)
    items = [item_of(model, each, WAYS, 6) for each in shapes.BENCHMARK.read(root)]
    groups = group_by_media(items, 16)
    media = {medium for group in groups for medium in group.media}
    ahead = read_ahead(groups, reader(model, None), ahead=len(groups), workers=1)
    assert [group for group, _ in ahead] == groups
    assert sorted(map(str, read)) == sorted(str(medium.source) for medium in media)
    # The next ones are read before the first one is used, and not many more.
    read.clear()
    ahead = read_ahead(groups, reader(model, None), ahead=3, workers=1)
    next(ahead)
    assert 1 <= len(read) <= 4
