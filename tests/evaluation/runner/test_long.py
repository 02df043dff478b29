"""Questions beyond the model's longest sequence in the runner of benchmarks."""

import pytest
from tests.evaluation import long_questions
from tests.evaluation.long_questions import LONGEST, NEW, WORDS

from elva_jax import testing
from elva_jax.data.example import Media
from elva_jax.errors import LayoutError
from elva_jax.evaluation.benchmarks import own
from elva_jax.evaluation.benchmarks.base import Benchmark, Question
from elva_jax.evaluation.runner.run import evaluate_benchmarks, unreadable
from elva_jax.evaluation.runner.settings import BenchmarkConfig
from elva_jax.inference.media import Request


def request(model, question):
    media = [model.read_media(each.source) for each in question.media]
    return Request(media or None, question.prompt)


def test_long_questions_have_the_model_s_own_answers_and_too_long_ones_cost_nothing(tmp_path):
    """Of one batch, some about a clip and some without; each too long one is counted."""
    model = long_questions.model()
    clip = str(testing.write_video(tmp_path / "clip.mp4", testing.tiny_video(8)))
    questions = [
        Question(
            key=f"{name} {'clip' if source else 'text'}",
            media=(Media(source, "video"),) if source else (),
            prompt=long_questions.text(name),
            text=long_questions.text(name),
            references=("red",),
        )
        for name in WORDS
        for source in (clip, None)
    ]
    benchmark = Benchmark(
        name="long", title="Long", kind="open", reader=lambda _: questions, grade=own.grade,
        score=own.score, max_new_tokens=NEW,
    )  # fmt: skip
    (found,) = evaluate_benchmarks(
        model, [benchmark], tmp_path, BenchmarkConfig(batch_size=8), output=tmp_path / "out"
    )
    responses = [grade.response for grade in found.grades["generated"]]
    asked = [response for response in responses if not response.error]
    alike = model.generate([request(model, each.question) for each in asked], max_new_tokens=NEW)
    assert [each.text for each in asked] == [answer.text for answer in alike]
    sizes = {-(-each.tokens[0] // LONGEST) for each in asked}
    assert {1, 2} < sizes  # as trained, and RoPE scaled by several factors
    for response in responses:
        if "too long" in response.question.key:
            with pytest.raises(LayoutError) as alone:
                model.generate([request(model, response.question)], max_new_tokens=NEW)
            assert (response.error, response.text) == (str(alone.value), None)
            assert f"the model's longest sequence is {LONGEST}, or {8 * LONGEST}" in response.error
            assert "\n" not in response.error
    assert sum(unreadable(found).values()) == 2
    assert found.scores["generated"].main.count == len(questions)
    assert found.scores["generated"].statuses["too_long"] == 2
