"""Tests of the benchmarks of images: their readers, and their worked scores.

`harness` is what lmms-eval 0.7.3 gives for the same answers; it is not asserted against our code.
"""

import base64
import json
import math

import pytest
from tests.evaluation.benchmarks.helpers import grades, parquet, score, touch, values, write

from elva_jax.data.example import Media
from elva_jax.errors import DataError, RecordError
from elva_jax.evaluation.benchmarks import mme
from elva_jax.evaluation.benchmarks.registry import BENCHMARKS

PNG = base64.b64encode(b"\x89PNG" + bytes(80)).decode()


def named(scores):
    return values({metric.name: metric for metric in (scores.main, *scores.others)})


def gqa_root(root, *answers):
    questions = {
        f"q{k}": {"imageId": f"i{k}", "question": "What is it?", "answer": answer}
        for k, answer in enumerate(answers)
    }
    questions["q0"] |= {"types": {"structural": "verify", "semantic": "attr"}}
    write(root / "testdev_balanced_questions.json", questions)
    return root


@pytest.mark.parametrize(
    ("text", "answer", "want"),
    [
        ("Yes.", "yes", 1),
        ("Dog", "dog", 1),
        ("yes, it is", "yes", 0),
        ("a dog", "dog", 0),
        ("traffic light", "traffic-light", 0),
        (" dog \n", "dog", 1),
    ],
)
def test_gqa_is_an_exact_match_but_for_case_and_punctuation(tmp_path, text, answer, want):
    benchmark = BENCHMARKS["gqa"]
    questions = benchmark.read(gqa_root(tmp_path, answer))
    assert score(benchmark, questions, [text]).main.value == 100 * want


def test_gqas_files_and_unparsed_answers(tmp_path):
    benchmark = BENCHMARKS["gqa"]
    image = touch(tmp_path / "images" / "i0.jpg")
    first, second = benchmark.read(gqa_root(tmp_path, "dog", "cat"))
    assert (first.key, first.media) == ("q0", (Media(image, "image"),))
    assert second.media[0].source == str(tmp_path / "images" / "i1.jpg")
    found = score(benchmark, [first, second], ["", OSError("gone")])
    assert found.statuses == {"unparsed": 1, "unreadable": 1}
    assert (found.main.value, found.main.count) == (0.0, 1)
    assert values(found.categories["structural"]) == {"verify": 0.0}
    with pytest.raises(DataError, match=r"testdev_balanced_questions.json: no such file; expected"):
        benchmark.read(tmp_path / "images")


def test_gqas_copy_of_the_hub_has_images_in_another_table(tmp_path):
    row = {"id": "7", "imageId": "n1", "question": "?", "answer": "dog", "types": {"semantic": "x"}}
    parquet(tmp_path / "testdev_balanced_instructions" / "testdev-0.parquet", [row])
    image = {"id": "n1", "image": {"bytes": b"PNG", "path": "n1.png"}}
    parquet(tmp_path / "testdev_balanced_images" / "testdev-0.parquet", [image])
    (question,) = BENCHMARKS["gqa"].read(tmp_path)
    assert question.media == (Media(b"PNG", "image"),)


SEED_OPTIONS = ("dog", "cat", "bird", "fish")


def seed_root(root, kinds=(1, 9, 10)):
    questions = [
        {
            "question_id": f"{kind}_0",
            "question_type_id": kind,
            "data_id": "a_1",
            "question": "?",
            "answer": "B",
            **dict(
                zip(("choice_a", "choice_b", "choice_c", "choice_d"), SEED_OPTIONS, strict=True)
            ),
        }
        for kind in kinds
    ]
    write(root / "SEED-Bench.json", {"questions": questions, "question_type": {}})
    return root


@pytest.mark.parametrize(
    ("text", "harness"),
    [("B", 1), ("b", 1), ("B. cat", 1), (" B", 1), ("(B)", 0), ("The answer is B", 0)],
)
def test_seed_reads_letters_as_every_other_choice(tmp_path, text, harness):
    benchmark = BENCHMARKS["seed_image"]
    (question,) = benchmark.read(seed_root(tmp_path, [1]))
    assert score(benchmark, [question], [text]).main.value == 100.0 >= 100 * harness


def test_seeds_questions_about_videos_are_left_out(tmp_path):
    benchmark = BENCHMARKS["seed_image"]
    image = touch(tmp_path / "SEED-Bench-image" / "a_1.jpg")
    questions = benchmark.read(seed_root(tmp_path))
    assert [question.key for question in questions] == ["1_0", "9_0"]
    assert questions[0].media == (Media(image, "image"),)
    found = score(benchmark, questions, ["B", "A"])
    expected = {"Scene Understanding": 100.0, "Text Understanding": 0.0}
    assert (found.main.value, values(found.categories["type"])) == (50.0, expected)
    write(tmp_path / "SEED-Bench.json", {"questions": {}})
    with pytest.raises(RecordError, match=r"SEED-Bench.json: has no list 'questions'"):
        benchmark.read(tmp_path)


def mme_root(root, images):
    """A text file per image with two questions, answered with yes and no; all tasks have some."""
    for task, name in [*images, *((task, "rest") for task in mme.TASKS)]:
        lines = ["Is it red? Please answer yes or no.\tYes", "Is it blue?\tNo"]
        write(root / task / f"{name}.txt", "\n".join(lines) + "\n")
        touch(root / task / f"{name}.jpg")
    return root


def mme_questions(root, images):
    """Those about some images alone, as with a limit."""
    questions = BENCHMARKS["mme"].read(mme_root(root, images))
    return [q for q in questions if "/rest/" not in q.key]


def test_mme_adds_both_accuracies_of_a_task(tmp_path):
    benchmark = BENCHMARKS["mme"]
    questions = mme_questions(tmp_path, [("count", name) for name in "abc"])
    found = score(benchmark, questions, ["Yes", "no", "yes", "yes", "The answer is yes", "I know"])
    assert round(found.main.value, 2) == 83.33
    assert found.statuses == {"right": 3, "wrong": 1, "unparsed": 2}


def test_mme_sums_perception_and_cognition_apart(tmp_path):
    benchmark = BENCHMARKS["mme"]
    images = [("count", "a"), ("color", "b"), ("code_reasoning", "c")]
    questions = mme_questions(tmp_path, images)
    found = score(benchmark, questions, ["Yes.", "N", "yes, it is", "not sure", "y", "No"])
    assert named(found) == {
        "perception": 250.0,
        "cognition": 200.0,
        "perception + cognition": 450.0,
        "accuracy": 83.33,
    }
    assert values(found.categories["task"])["color"] == 50.0
    assert math.isnan(found.categories["task"]["scene"].value)


def test_an_image_of_mme_with_one_question_is_not_in_accuracy_plus(tmp_path):
    benchmark = BENCHMARKS["mme"]
    questions = mme_questions(tmp_path, [("count", "a"), ("count", "b")])
    found = score(benchmark, questions[:3], ["yes", "no", "no"])
    assert round(found.main.value, 2) == 166.67
    assert math.isnan(score(benchmark, questions[:1], ["yes"]).main.value)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        *(("Yes.", "Yes"), ("yes, it is", "Yes"), ("y", "Yes"), ("nope", "No"), ("N", "No")),
        *((text, None) for text in ("not sure", "none", "The answer is yes", "There is no", "")),
    ],
)
def test_mmes_answers_begin_with_yes_or_no(tmp_path, text, want):
    benchmark = BENCHMARKS["mme"]
    questions = mme_questions(tmp_path, [("count", "a")])[:1]
    assert questions[0].text == "Is it red?"
    assert questions[0].prompt == "Is it red?\nAnswer with yes or no."
    (grade,) = grades(benchmark, questions, [text])
    assert (None if grade.parsed is None else grade.response.question.options[grade.parsed]) == want


def test_mmes_other_layouts_hold_the_same_questions(tmp_path):
    mme_root(tmp_path / "files", [("count", "a")])
    for task in mme.TASKS:
        text = (tmp_path / "files" / task / "rest.txt").read_text()
        write(tmp_path / "folders" / task / "questions_answers_YN" / "a.txt", text)
        touch(tmp_path / "folders" / task / "images" / "a.jpg")
        lines = "".join(f"a.jpg\t{line}\n" for line in text.splitlines())
        write(tmp_path / "table" / f"{task}.txt", lines)
        touch(tmp_path / "table" / task / "a.jpg")
    for layout in ("files", "folders", "table"):
        found = [q for q in BENCHMARKS["mme"].read(tmp_path / layout) if "count/a" in q.key]
        assert [(q.text, q.answer) for q in found] == [("Is it red?", 0), ("Is it blue?", 1)]
        assert found[0].media[0].source.endswith("/a.jpg"), layout
        assert "/count/" in found[0].media[0].source, layout
    write(tmp_path / "table" / "count.txt", "a.jpg\tIs it red?\n")
    with pytest.raises(RecordError, match=r"table/count.txt:1: has 2 values between tabs, not 3"):
        BENCHMARKS["mme"].read(tmp_path / "table")
    (tmp_path / "table" / "count.txt").unlink()
    with pytest.raises(DataError, match=r"count/\*.txt: no such file; expected layout"):
        BENCHMARKS["mme"].read(tmp_path / "table")


OPTIONS = ("cat", "dog", "bird", "fish")


def mmbench_root(root, rotations, images=None):
    """A table with the rows (index, right letter)."""
    header = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image"]
    rows = []
    for number, (index, answer) in enumerate(rotations):
        image = images[number] if images else PNG
        rows.append([index, "What is it?", "nan", *OPTIONS, answer, "animals", image])
    lines = ["\t".join(map(str, row)) for row in (header, *rows)]
    write(root / "mmbench_dev_en.tsv", "\n".join(lines) + "\n")
    return root


ROTATED = [(7, "A"), (1_000_007, "B"), (2_000_007, "C"), (3_000_007, "D")]


@pytest.mark.parametrize(
    ("rotations", "texts", "want"),
    [
        (ROTATED, ["A", "B", "C", "D"], 100.0),
        (ROTATED, ["A", "B", "C", "A"], 0.0),
        ([*ROTATED, (8, "A"), (1_000_008, "B")], ["A", "B", "C", "D", "A", "A"], 50.0),
        (ROTATED, ["A", "B", "C", "B or C"], 0.0),
        ([*ROTATED, (1_000_009, "A")], ["A", "B", "C", "D", "B"], 100.0),  # its main row is missing
    ],
)
def test_mmbench_needs_every_rotation(tmp_path, rotations, texts, want):
    benchmark = BENCHMARKS["mmbench"]
    questions = benchmark.read(mmbench_root(tmp_path, rotations))
    found = score(benchmark, questions, texts)
    assert found.main.value == found.categories["category"]["animals"].value == want


@pytest.mark.parametrize(
    ("text", "want"),
    [("A cat", 0), ("dog and cat", None), ("B or C", None), ("It is a dog", 1), ("E", None)],
)
def test_mmbenchs_answers(tmp_path, text, want):
    questions = BENCHMARKS["mmbench"].read(mmbench_root(tmp_path, ROTATED[:1]))
    assert grades(BENCHMARKS["mmbench"], questions, [text])[0].parsed == want


def test_mmbenchs_images_may_be_those_of_other_rows(tmp_path):
    root = mmbench_root(tmp_path, ROTATED[:2], [PNG, 7])
    first, second = BENCHMARKS["mmbench"].read(root)
    assert first.media == second.media == (Media(base64.b64decode(PNG), "image"),)
    assert first.text == "What is it?"  # without the absent hint
    for image, message in (("999", "nor the index of a row"), ("!" * 80, "is no base64")):
        with pytest.raises(RecordError, match=message):
            BENCHMARKS["mmbench"].read(mmbench_root(tmp_path, ROTATED[:1], [image]))
    with pytest.raises(DataError, match="the question 7 is there twice"):
        BENCHMARKS["mmbench"].read(mmbench_root(tmp_path, [(7, "A"), (7, "B")]))


def test_mmbench_without_public_answers_has_no_score(tmp_path):
    questions = BENCHMARKS["mmbench"].read(mmbench_root(tmp_path, [(7, "")]))
    found = score(BENCHMARKS["mmbench"], questions, ["A"])
    assert (found.main.count, found.statuses) == (0, {"no_reference": 1})


def pope_root(root, labels):
    """The same questions in the files of all three kinds."""
    for kind in ("random", "popular", "adversarial"):
        lines = [
            {"question_id": k, "image": "i.jpg", "text": "Is there a dog?", "label": label}
            for k, label in enumerate(labels)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write(root / f"coco_pope_{kind}.json", text)
    return root


@pytest.mark.parametrize(
    ("labels", "texts", "want"),
    [
        (
            ["yes", "yes", "no", "no"],
            ["Yes", "no", "no", "yes"],
            {"f1": 50.0, "accuracy": 50.0, "precision": 50.0, "recall": 50.0, "yes-rate": 50.0},
        ),
        (
            ["yes", "no", "no", "no"],
            ["yes", "yes", "yes", "yes"],  # the harness's yes-rate is 25, that of the labels
            {"f1": 40.0, "accuracy": 25.0, "precision": 25.0, "recall": 100.0, "yes-rate": 100.0},
        ),
        (
            ["yes", "yes", "no", "no"],
            ["Yes.", "Yes, there is", "No", "no"],  # the harness: accuracy 50, precision 0
            {"f1": 100.0, "accuracy": 100.0, "precision": 100.0, "recall": 100.0, "yes-rate": 50.0},
        ),
        (
            ["yes", "yes", "no", "no"],
            ["yes", "perhaps", "", "no"],  # unparsed answers are in every denominator
            {"f1": 66.67, "accuracy": 50.0, "precision": 100.0, "recall": 50.0, "yes-rate": 25.0},
        ),
    ],
)
def test_popes_scores(tmp_path, labels, texts, want):
    benchmark = BENCHMARKS["pope"]
    questions = benchmark.read(pope_root(tmp_path, labels))
    found = score(benchmark, questions, texts * 3)
    assert named(found) == want
    assert values(found.categories["category"]) == dict.fromkeys(
        ("random", "popular", "adversarial"), want["f1"]
    )
    assert questions[0].key == "random/0"
    assert questions[0].media[0].source == str(tmp_path / "val2014" / "i.jpg")


def test_copies_of_the_hub_are_read(tmp_path):
    image = {"bytes": b"PNG", "path": None}
    common = {"question": "Is it red?", "answer": "yes", "image": image}
    pope = {**common, "question_id": "1", "category": "random"}
    parquet(tmp_path / "pope" / "data" / "test-0.parquet", [pope])
    mme = {**common, "question_id": "count/1.png", "category": "count"}
    parquet(tmp_path / "mme" / "data" / "test-0.parquet", [mme, {**mme, "answer": "No"}])
    letters = {f"choice_{letter}": letter * 3 for letter in "abcd"}
    seed = {**common, **letters, "question_id": "1", "question_type_id": 2, "answer": "C"}
    parquet(tmp_path / "seed_image" / "data" / "test-0.parquet", [{**seed, "image": [image]}])
    options = {"A": "x", "B": "y", "C": "nan", "D": "nan", "hint": "Look."}
    rows = {**common, **options, "index": 5, "answer": "B", "category": "c", "L2-category": "l"}
    parquet(tmp_path / "mmbench" / "en" / "dev-0.parquet", [rows])
    for name, number in (("pope", 1), ("mme", 2), ("seed_image", 1), ("mmbench", 1)):
        questions = BENCHMARKS[name].read(tmp_path / name)
        assert len(questions) == number, name
        assert questions[-1].media == (Media(b"PNG", "image"),)
    assert questions[0].options == ("x", "y")
    assert questions[0].text == "Look.\n\nIs it red?"
