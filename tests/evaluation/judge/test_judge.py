"""Tests of the judge against a real server: worked scores, failures, the cache and the key."""

import json
import re
import subprocess
import sys

import pytest
from tests.evaluation.benchmarks.helpers import grades as graded
from tests.evaluation.benchmarks.helpers import values
from tests.tools.recaption.conftest import Server, completion, send

from elva_jax.data.example import Media
from elva_jax.errors import ConfigError
from elva_jax.evaluation.benchmarks.base import Evaluation
from elva_jax.evaluation.benchmarks.open_answers import open_question
from elva_jax.evaluation.benchmarks.registry import BENCHMARKS
from elva_jax.evaluation.benchmarks.video_chatgpt import ASPECTS
from elva_jax.evaluation.judge import judge as judging
from elva_jax.evaluation.judge.config import JudgeConfig
from elva_jax.evaluation.judge.judge import Judge, judged
from elva_jax.evaluation.judge.prompts import PROMPT_VERSION, SYSTEM
from elva_jax.evaluation.judge.replies import parse_reply
from elva_jax.utils.chat_client import Retry

FAST = Retry(timeout=5.0, tries=2, back_off=0.01, total=5.0)
QA = BENCHMARKS["activitynet_qa"]
CHATGPT = BENCHMARKS["video_chatgpt"]


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def config(server, cache=None, **changes):
    settings = {"model": "gpt", "cache": cache, "retry": FAST, "concurrency": 4} | changes
    return JudgeConfig(endpoint=server.url, **settings)


def asked(request):
    """What a request is about: its task, and the texts to judge."""
    system, user = request["messages"]
    task = next(name for name, text in SYSTEM.items() if text == system["content"])
    return task, json.loads(user["content"])


def replies(server, say):
    """Makes the server answer by `say(task, texts)`."""
    server.answer = lambda handler, number, request: send(
        handler, 200, completion(say(*asked(request)))
    )


def qa_grades(*texts):
    questions = [
        open_question(f"q{k}", [Media("v.mp4", "video")], "What is it?", ["a dog"])
        for k in range(len(texts))
    ]
    return graded(QA, questions, texts)


def evaluation(benchmark, grades):
    return Evaluation(
        benchmark=benchmark.name,
        title=benchmark.title,
        scores={"generated": benchmark.score(grades)},
        grades={"generated": tuple(grades)},
        settings={"model": "tiny"},
    )


def numbers(scores):
    return values({metric.name: metric for metric in (scores.main, *scores.others)})


@pytest.mark.parametrize(
    ("text", "right", "points"),
    [
        ("{'pred': 'yes', 'score': 4}", True, 4),
        ("{'pred': 'no', 'score': 1.9}", False, 1),
        ("{'pred': 'yes', 'score': 4.8}", True, 4),
        ("{'pred': 'Yes', 'score': '4'}", True, 4),
        ('Sure! ```json\n{"pred": "no", "score": 0}\n``` Bye.', False, 0),
        ("{'pred': 'yes', 'score': 9}", None, None),
        ("{'pred': 'yes', 'score': -1}", None, None),
        ("{'pred': 'yes', 'score': True}", None, None),
        ("{'pred': 'yes', 'score': 1e999}", None, None),
        ("{'pred': 'maybe', 'score': 3}", None, 3),
        ('{"pred": true, "score": 3}', None, 3),
        ("{'score': 4}", None, 4),
        ("{'pred': 'yes'}", None, None),
        ("yes, 4", None, None),
        ("", None, None),
        ("{''score': 4.8}", None, None),
        ("{'pred': 'no', 'score': 1, 'score': 5}", None, None),
        ("{" + "[" * 5000 + "}", None, None),
        ("{'pred': __import__('os'), 'score': 4}", None, None),
    ],
)
def test_replies_are_parsed_strictly(text, right, points):
    verdict = parse_reply(text, with_verdict=True)
    assert (verdict.right, verdict.points) == (right, points)
    assert bool(verdict.failure) == (right is None)
    assert "\n" not in verdict.failure


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("{'score': 4}", 4),
        ("{'score': 4.8}", 4),
        ('{"score": 3}', 3),
        ("Sure {'score': 3}", 3),
        ("{''score': 4.8}", None),  # the harness gives 0 in silence
    ],
)
def test_replies_of_points_alone(text, points):
    verdict = parse_reply(text, with_verdict=False)
    assert (verdict.points, bool(verdict.failure)) == (points, points is None)


VERDICTS = {"w": ("yes", 5), "x": ("yes", 4), "y": ("no", 2), "z": ("maybe", 3)}


def verdict(task, texts):
    pred, score = VERDICTS[texts["answer"]]
    return json.dumps({"pred": pred, "score": score})


def test_activitynets_worked_score(server):
    replies(server, verdict)
    before = evaluation(QA, qa_grades("w", "x", "y", "z"))
    seen = []
    after = judged(before, QA, Judge(config(server)), lambda *done: seen.append(done))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    scores = after.scores["generated"]
    assert numbers(scores) == {
        "judge accuracy": 50.0,  # the harness: 66.67, without the reply "maybe"
        "judge score": 3.5,
        "exact match": 0.0,
        "token F1": 0.0,
    }
    assert scores.main.count == 4
    assert scores.statuses == {"right": 2, "wrong": 1, "unjudged": 1}
    assert after.settings["judge"] == "gpt"
    assert after.settings["judge_prompt"] == PROMPT_VERSION
    assert after.settings["judge_failures"] == {"the verdict maybe is neither yes nor no": 1}
    assert before.scores["generated"].main.name == "exact match"


def test_what_cannot_be_judged_is_not_asked(server):
    replies(server, verdict)
    judge = Judge(config(server))
    found = judge.grade("qa", qa_grades("w", OSError("gone"), "w"))
    assert [grade.status for grade in found] == ["right", "unreadable", "right"]
    assert len(server.requests) == 1  # equal answers are judged once
    assert QA.score(found).main.value == pytest.approx(200 / 3)
    task, texts = asked(server.requests[0])
    assert (task, texts["references"], texts["answer"]) == ("qa", ["a dog"], "w")


@pytest.mark.parametrize(
    ("status", "reason"),
    [(500, r"HTTP 500: no \(2 tries\)"), (400, "HTTP 400: no"), (401, "HTTP 401: no; check --jud")],
)
def test_a_judge_that_fails_costs_no_answers(server, status, reason):
    server.answer = lambda handler, number, request: send(handler, status, "no")
    judge = Judge(config(server, concurrency=1))
    found = judge.grade("qa", qa_grades("a dog", "b"))
    assert [grade.status for grade in found] == ["unjudged", "unjudged"]
    scores = QA.score(found)
    assert (scores.main.name, scores.main.value, scores.main.count) == ("judge accuracy", 0.0, 2)
    assert numbers(scores)["exact match"] == 50.0
    assert next(metric.count for metric in scores.others if metric.name == "judge score") == 0
    assert any(re.search(reason, text) for text in judge.failures)


def test_a_judge_is_given_up_after_failures_in_a_row(server, monkeypatch):
    monkeypatch.setattr(judging, "FAILURES_IN_A_ROW", 3)
    server.answer = lambda handler, number, request: send(handler, 400, "no")
    judge = Judge(config(server, concurrency=1))
    found = judge.grade("qa", qa_grades(*map(str, range(10))))
    assert [grade.status for grade in found] == ["unjudged"] * 10
    assert len(server.requests) == 3
    assert judge.failures["the judge was given up after: HTTP 400: no"] == 7


def test_few_reasons_of_failures_stand_beside_a_score(server, monkeypatch):
    monkeypatch.setattr(judging, "MOST_REASONS", 2)
    replies(server, lambda _, texts: texts["answer"])
    before = evaluation(QA, qa_grades("one", "two", "three", "four"))
    failures = judged(before, QA, Judge(config(server))).settings["judge_failures"]
    assert list(failures.values()) == [1, 1, 2]
    assert list(failures)[-1] == "other reasons"


def test_a_reply_that_cannot_be_read_is_asked_for_again(server):
    said = iter(["I think so.", '{"pred": "yes", "score": 5}'])
    replies(server, lambda *_: next(said))
    (grade,) = Judge(config(server)).grade("qa", qa_grades("x"))
    assert (grade.status, grade.credit, grade.details["judge_score"]) == ("right", 1.0, 5.0)


def chatgpt_grades(*texts):
    """A generic, a temporal and two consistency questions."""
    parts = ("generic", "temporal", "consistency", "consistency")
    questions = [
        open_question(
            f"{part}/{k}",
            [Media("v.mp4", "video")],
            "What happens?",
            ["A dog runs."],
            extra={"group": f"{part}/0", "aspects": ASPECTS[part]},
        )
        for k, part in enumerate(parts)
    ]
    return graded(CHATGPT, questions, texts)


def test_video_chatgpt_is_the_mean_of_its_five_aspects(server):
    points = {"correctness": 4, "detail": 3.9, "context": 5, "temporal": 2, "consistency": 1}
    replies(server, lambda task, texts: f"{{'score': {points[task]}}}")
    after = judged(
        evaluation(CHATGPT, chatgpt_grades("a", "b", "c", "d")), CHATGPT, Judge(config(server))
    )
    scores = after.scores["generated"]
    whole = {**points, "detail": 3}
    assert numbers(scores) == {"mean of aspects": 3.0, **whole, "token F1": 0.0}
    assert (scores.main.maximum, scores.main.count) == (5.0, 5)
    assert scores.statuses == {"right": 1, "wrong": 3}
    pair = next(texts for task, texts in map(asked, server.requests) if task == "consistency")
    assert (pair["first answer"], pair["second answer"]) == ("c", "d")


def test_a_malformed_reply_is_a_failure_and_no_zero(server):
    malformed = "{''score': 4.8}"
    replies(server, lambda task, _: malformed if task == "detail" else "{'score': 4}")
    grades = chatgpt_grades("a", "b", "c", OSError("gone"))
    after = judged(evaluation(CHATGPT, grades), CHATGPT, Judge(config(server)))
    scores = after.scores["generated"]
    assert scores.main.value == 4.0
    counts = {metric.name: metric.count for metric in scores.others}
    assert (counts["detail"], counts["correctness"], counts["consistency"]) == (0, 1, 0)
    assert scores.statuses == {"unjudged": 2, "right": 1, "unreadable": 1}
    assert sum(after.settings["judge_failures"].values()) == 1


def test_replies_are_cached_by_content_and_failures_are_not(server, tmp_path):
    replies(server, verdict)
    for requests in (5, 7):  # "maybe" is asked for twice, and again in the second run
        Judge(config(server, tmp_path)).grade("qa", qa_grades("w", "x", "y", "z"))
        assert len(server.requests) == requests
    files = list(tmp_path.rglob("*.json"))
    assert len(files) == 3
    Judge(config(server, tmp_path, model="other")).grade("qa", qa_grades("w"))
    assert len(server.requests) == 8
    for file in files:
        file.write_text("{\"reply\": \"{'pred': 'no', 'score': 0}\", \"asked\": {}}")
    (grade,) = Judge(config(server, tmp_path)).grade("qa", qa_grades("w"))
    assert (grade.status, len(server.requests)) == ("right", 9)


WRITER = """
import sys
from pathlib import Path
from elva_jax.evaluation.judge.cache import ReplyCache

cache = ReplyCache(Path(sys.argv[1]))
for number in range(100):
    asked = {"task": "qa", "texts": {"answer": str(number % 20), "long": "x" * 9000}}
    found = cache.get(asked)
    assert found in (None, f"reply {number % 20}"), found
    cache.put(asked, f"reply {number % 20}")
"""


def test_processes_share_a_cache(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    started = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait(60) for process in started] == [0, 0, 0]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 20
    assert len({json.loads(path.read_text())["reply"] for path in files}) == 20


def test_the_key_is_in_the_header_alone(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-SECRET")
    server.answer = lambda handler, number, request: send(
        handler, 200, completion('{"pred": "yes", "score": 5, "why": "sk-SECRET"}')
    )
    url = server.url.replace("//", "//me:passw0rd@") + "?key=passw0rd"
    judge = Judge(JudgeConfig(endpoint=url, model="gpt", cache=tmp_path, retry=FAST))
    judge.grade("qa", qa_grades("w"))
    assert server.headers[0][1]["Authorization"]
    shown = f"{judge.describe()}{judge.failures}{judge!r}"
    shown += "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert "SECRET" not in shown
    assert "passw0rd" not in shown


def test_a_judge_is_checked_before_it_is_needed(server, tmp_path):
    replies(server, lambda *_: '{"pred": "yes", "score": 5}')
    Judge(config(server)).check()
    replies(server, lambda *_: "Hello!")
    with pytest.raises(ConfigError, match="--judge-model: the reply is no JSON object"):
        Judge(config(server)).check()
    server.answer = lambda handler, *_: send(handler, 404, "no such model")
    with pytest.raises(ConfigError, match="HTTP 404: no such model; check --judge, --judge-model"):
        Judge(config(server)).check()
    server.answer = lambda handler, *_: send(handler, 503, "busy")
    with pytest.raises(ConfigError, match=r"--judge: HTTP 503: busy \(2 tries\); check the"):
        Judge(config(server)).check()
    with pytest.raises(ConfigError, match="--judge=ftp://x: must be an address"):
        Judge(JudgeConfig(endpoint="ftp://x", model="gpt"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--judge-cache"):
        Judge(config(server, tmp_path / "file"))
