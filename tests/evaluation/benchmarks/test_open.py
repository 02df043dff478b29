"""Tests of open-ended benchmarks without a judge: their readers, exact match and token F1."""

import pytest
from tests.evaluation.benchmarks.helpers import parquet, score, touch, values, write

from elva_jax.errors import DataError, RecordError
from elva_jax.evaluation.benchmarks.open_answers import as_sentence, token_f1
from elva_jax.evaluation.benchmarks.registry import BENCHMARKS


def zero_shot(root, video="v1", **answer):
    """Questions and answers in two files, in different order."""
    questions = [
        {"video_name": video, "question_id": f"{video}_{k}", "question": "what is it"}
        for k in range(2)
    ]
    answers = [{"question_id": f"{video}_{k}", "answer": f"dog {k}", **answer} for k in (1, 0)]
    write(root / "test_q.json", questions)
    write(root / "test_a.json", answers)
    return root


@pytest.mark.parametrize(
    ("name", "folder", "file"),
    [
        ("msvd_qa", "videos", "v1.avi"),
        ("msrvtt_qa", "all", "v1.mp4"),
        ("tgif_qa", "mp4", "v1.mp4"),
        ("activitynet_qa", "all_test", "v_v1.mkv"),
    ],
)
def test_questions_are_joined_with_their_answers(tmp_path, name, folder, file):
    video = touch(tmp_path / folder / file)
    questions = BENCHMARKS[name].read(zero_shot(tmp_path))
    assert [(q.key, q.references) for q in questions] == [
        ("v1_0", ("dog 0",)),
        ("v1_1", ("dog 1",)),
    ]
    assert questions[0].media[0].source == video
    assert questions[0].text == "What is it?"


def test_answers_that_do_not_fit_are_refused(tmp_path):
    benchmark = BENCHMARKS["msvd_qa"]
    answer = {"question_id": "v1_0", "answer": "x"}
    zero_shot(tmp_path)
    write(tmp_path / "test_a.json", [answer, answer])
    with pytest.raises(RecordError, match=r"test_a.json\[1\]: answers the question v1_0 a second"):
        benchmark.read(tmp_path)
    write(tmp_path / "test_a.json", [answer])
    with pytest.raises(RecordError, match=r"test_q.json\[1\]: test_a.json has no answer to v1_1"):
        benchmark.read(tmp_path)
    (tmp_path / "test_a.json").unlink()
    with pytest.raises(DataError, match=r"test_q.json: has no answers, and there is no file"):
        benchmark.read(tmp_path)
    write(tmp_path / "test_q.json", [{"question_id": 1, "video_name": "v", "question": "?"}] * 2)
    write(tmp_path / "test_a.json", [{"question_id": 1, "answer": "x"}])
    with pytest.raises(DataError, match="the question 1 is there twice"):
        benchmark.read(tmp_path)


def test_original_files_are_read(tmp_path):
    row = {"id": 7, "video_id": 3, "question": "who?", "answer": "man"}
    for name in ("msvd_qa", "msrvtt_qa"):
        write(tmp_path / name / "test_qa.json", [row])
    write(tmp_path / "msvd_qa" / "youtube_mapping.txt", "abc_1_2 vid3\nxyz_1_2 vid4\n")
    clip = touch(tmp_path / "msvd_qa" / "YouTubeClips" / "abc_1_2.avi")
    video = touch(tmp_path / "msrvtt_qa" / "videos" / "video3.mp4")
    table = 'gif_name\tquestion\tanswer\ttype\nt1\twhat "is" it ?\tdog\t2\n'
    write(tmp_path / "tgif_qa" / "Test_frameqa_question.csv", table)
    gif = touch(tmp_path / "tgif_qa" / "gifs" / "t1.gif")
    for name, path in (("msvd_qa", clip), ("msrvtt_qa", video), ("tgif_qa", gif)):
        (question,) = BENCHMARKS[name].read(tmp_path / name)
        assert question.media[0].source == path, name
    assert (question.references, question.categories) == (("dog",), {"type": "color"})


def test_activitynets_copy_of_the_hub(tmp_path):
    row = {
        "video_name": "x",
        "question_id": "x_1",
        "question": "is it",
        "answer": "no",
        "type": "3",
    }
    parquet(tmp_path / "data" / "test-0.parquet", [row])
    (question,) = BENCHMARKS["activitynet_qa"].read(tmp_path)
    assert question.categories == {"type": "yes/no"}
    assert question.media[0].source == str(tmp_path / "all_test" / "v_x.mp4")


def test_without_a_judge_exact_match_and_token_f1_have_their_names(tmp_path):
    benchmark = BENCHMARKS["activitynet_qa"]
    questions = benchmark.read(zero_shot(tmp_path, type=4)) * 2
    found = score(benchmark, questions, ["A dog, 0.", "the dog", "", OSError("gone")])
    assert (found.main.name, found.main.value, found.main.count) == (
        "exact match",
        pytest.approx(100 / 3),
        3,
    )
    assert found.statuses == {"right": 1, "wrong": 1, "unparsed": 1, "unreadable": 1}
    assert values(found.categories["type"]) == {"color": 33.33}
    assert [metric.name for metric in found.others] == ["token F1"]


def test_token_f1_counts_words():
    assert token_f1("a red car", "The red truck") == 0.5
    assert token_f1("red red", "red") == pytest.approx(2 / 3)
    assert token_f1("", "red") == token_f1("red", "blue") == 0.0
    assert as_sentence("is it 3 p.m.?") == "Is it 3 p.m.?"


def chatgpt_root(root):
    one = [{"video_name": "v", "Q": "What happens?", "A": "A dog runs."}]
    write(root / "generic_qa.json", one)
    write(root / "temporal_qa.json", one)
    pair = {"video_name": "v", "Q1": "Is it a dog?", "Q2": "What is it?", "A": "A dog."}
    write(root / "consistency_qa.json", [pair])
    return root


def test_video_chatgpt_has_three_parts_and_pairs_of_questions(tmp_path):
    benchmark = BENCHMARKS["video_chatgpt"]
    questions = benchmark.read(chatgpt_root(tmp_path))
    keys = ["generic/0", "temporal/0", "consistency/0/0", "consistency/0/1"]
    assert [question.key for question in questions] == keys
    assert questions[0].prompt == "What happens?"
    assert questions[2].extra["group"] == questions[3].extra["group"] == "consistency/0"
    found = score(benchmark, questions, ["dog runs", "", "dog", "cat"])
    assert (found.main.name, found.main.value) == ("exact match", 50.0)
    (tmp_path / "temporal_qa.json").unlink()
    with pytest.raises(DataError, match=r"temporal_qa.json: no such file; expected layout"):
        benchmark.read(tmp_path)


def test_video_chatgpts_copy_of_the_hub(tmp_path):
    row = {"video_name": "v", "question": "?", "question_1": "None", "question_2": "None"}
    for part in ("Generic", "Temporal"):
        parquet(tmp_path / part / "test-0.parquet", [{**row, "answer": "x"}])
    pair = {"question": "None", "question_1": "Why?", "question_2": "How?", "answer": "x"}
    parquet(tmp_path / "Consistency" / "test-0.parquet", [{**row, **pair}])
    questions = BENCHMARKS["video_chatgpt"].read(tmp_path)
    assert [question.text for question in questions] == ["?", "?", "Why?", "How?"]


def test_questions_as_the_hub_has_them(tmp_path):
    row = {"video_name": "v1", "question_id": "v1_0", "question": "what is it", "answer": "dog"}
    parquet(tmp_path / "data" / "test-0.parquet", [row])
    video = touch(tmp_path / "videos" / "v1.avi")
    (question,) = BENCHMARKS["msvd_qa"].read(tmp_path)
    assert (question.key, question.references, question.text) == ("v1_0", ("dog",), "What is it?")
    assert question.media[0].source == video
