"""The whole evaluation on real records: columns against single calls, counts, baselines."""

import json

import numpy as np
import pytest

import elva_jax
from elva_jax.cli import main
from elva_jax.data import sources
from elva_jax.data.readers import moving_shapes
from elva_jax.errors import DataError, ElvaError, VideoError
from elva_jax.evaluation import report
from elva_jax.evaluation.answers import exact_match
from elva_jax.evaluation.evaluate import evaluate
from elva_jax.evaluation.measurements import Measurements, likeliest
from elva_jax.evaluation.questions import read_split
from elva_jax.evaluation.result import EvalConfig
from elva_jax.inference.batching import Lengths
from elva_jax.inference.scoring import Choice, Likelihood
from elva_jax.utils.json import save_json
from elva_jax.video.read import read_frames

NAME = "moving_shapes/small"
BROKEN = 5


@pytest.fixture(scope="module")
def result(generator, data_dir):
    seen = []
    config = EvalConfig(data_dir=data_dir, dataset=NAME, batch_size=4)
    out = evaluate(generator, config, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 7), (7, 7)]
    return out.to_dict(predictions=True)


@pytest.fixture(scope="module")
def annotations(data_dir):
    return [
        (record, moving_shapes.annotation(record))
        for record in sources.open_source(NAME, "test", data_dir)
    ]


def test_every_question_counts_but_those_that_cannot_be_asked(result, annotations):
    asked = [q for _, notes in annotations for q in notes["questions"]]
    assert result["data"]["questions"] == len(asked) == len(result["items"])
    assert result["data"]["videos"] == len(annotations)
    lost = annotations[BROKEN][1]["questions"]
    for family, row in result["families"].items():
        counts = [sum(q["family"] == family for q in each) for each in (asked, lost)]
        assert row["count"] == counts[0] - counts[1] > 0
    (complaint,) = result["data"]["unreadable"]
    assert complaint.startswith("easy-test-000005:")
    broken = [item for item in result["items"] if item["video"].endswith(f"{BROKEN:06d}")]
    assert len(broken) == len(annotations[BROKEN][1]["questions"])
    assert all(item["written"] is None and item["picks"]["likelihood"] is None for item in broken)
    assert result["answers"]["total"] == len(asked) - len(broken)
    assert result["answers"]["without_likelihood"] == len(broken)


def test_accuracies_follow_from_the_predictions(result):
    columns = {"open": [], "likelihood": [], "letter": [], "blind": [], "single_frame": []}
    by_family = {}
    for item in result["items"]:
        if item["written"] is None:
            continue
        right = item["options"].index(item["answer"])
        credit = {name: item["picks"][name] == right for name in columns if name != "open"}
        credit["open"] = exact_match(item["written"], item["answer"])
        for name, value in credit.items():
            by_family.setdefault(item["family"], {}).setdefault(name, []).append(value)
        if item["log_likelihoods"]:
            assert item["picks"]["likelihood"] == int(np.argmax(item["log_likelihoods"]))
    for name in columns:
        means = {family: np.mean(values[name]) for family, values in by_family.items()}
        assert {
            family: row[name]["accuracy"] for family, row in result["families"].items()
        } == pytest.approx(means)
        assert result["macro"][name]["accuracy"] == pytest.approx(np.mean(list(means.values())))


def test_columns_equal_single_calls(generator, result, annotations):
    """Batches, padding and shared prefixes change nothing: one question, asked alone."""
    record, notes = annotations[6]
    q = notes["questions"][-1]
    (item,) = [
        i
        for i in result["items"]
        if i["video"] == "easy-test-000006" and i["question"] == q["question"]
    ]
    media = record["media"] if isinstance(record["media"], bytes) else record["media"].item()
    lengths = Lengths(steady=True)

    def scores(prefilled, question, options):
        return prefilled.score([[Choice(question, tuple(options))]], lengths=lengths)[0][0]

    seen = generator.prefill([(generator.read_media(media),)])
    listed = "\n".join(
        [
            q["question"],
            *(f"{x}. {y}" for x, y in zip("ABCD", q["options"], strict=True)),
            "Answer with the letter.",
        ]
    )
    assert item["picks"]["letter"] == likeliest(scores(seen, listed, "ABCD"))
    np.testing.assert_allclose(
        item["log_likelihoods"],
        [s.total for s in scores(seen, q["question"], q["options"])],
        rtol=1e-5,
    )
    assert item["written"] == seen.generate([[q["question"]]], 16)[0][0].text
    middle = generator.read_media([read_frames(media, num_frames=3).pixels[1]])
    for column, shown in (("single_frame", (middle,)), ("blind", ())):
        prefilled = generator.prefill([shown], merging=False, lengths=lengths)
        assert item["picks"][column] == likeliest(scores(prefilled, q["question"], q["options"]))


def test_result_is_json_and_prints(result, tmp_path, capsys):
    loaded = json.loads(save_json(result, tmp_path / "r.json").read_text())
    assert loaded["config"]["model"]["hidden_size"] == 32
    assert loaded["settings"]["num_frames"] == 3
    assert 0 < loaded["tokens"]["visual_kept"] <= 1
    report.table(loaded)
    words = " ".join(capsys.readouterr().out.split())
    assert "macro" in words
    for name, value in (
        ("weights_hash", loaded["model"]["weights_hash"]),
        ("prompts_hash", loaded["data"]["prompts_hash"]),
        ("dtype", "float32"),
        ("num_frames", 3),
        ("elva_jax", elva_jax.__version__),
    ):
        assert f"{name} {value} · " in words
    assert report.figure(loaded, tmp_path / "r.png").stat().st_size > 1000


def test_fewer_columns_merging_off_and_two_resolutions(generator, data_dir, result):
    hybrid = {"high_frames": 1, "low_frames": 2, "policy": "ends"}
    columns = {"baselines": False, "written": False, "letters": False}
    config = EvalConfig(
        data_dir=data_dir, dataset=NAME, limit=2, merging=False, hybrid=hybrid, **columns
    )
    out = evaluate(generator, config).to_dict()
    assert out["settings"]["hybrid"] == {**hybrid, "high_edge": 48, "low_edge": 16}
    assert result["settings"]["hybrid"] is None
    assert out["settings"]["num_frames"] == 3
    # Two of three frames have 1 patch, <LINE> and <FRAME> instead of 3 x 3, three and one.
    assert result["tokens"]["prompt"] - out["tokens"]["prompt"] == 2 * (13 - 3)
    assert set(out["macro"]) == {"likelihood", "likelihood_mean"}
    assert out["data"]["videos"] == 2
    assert out["tokens"]["visual_kept"] == 1.0
    assert len(out["tokens"]["segments"]) == 1
    assert "items" not in out


def test_likeliest():
    scores = [Likelihood(-3.0, 1), Likelihood(-4.0, 4), Likelihood(-3.5, 1)]
    assert likeliest(scores) == 0
    assert likeliest(scores, mean=True) == 1
    assert likeliest([*scores, Likelihood(float("nan"), 1)]) is None
    assert likeliest(None) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "moving_shapes/easy"}, "no such data set"),
        ({"split": "nowhere"}, "nowhere"),
        ({"limit": 0}, "limit=0"),
    ],
)
def test_errors(generator, data_dir, changes, message):
    with pytest.raises(ElvaError, match=message):
        evaluate(generator, EvalConfig(**{"data_dir": data_dir, "dataset": NAME} | changes))


def test_the_command_names_unreadable_videos(generator, data_dir, tmp_path, capsys):
    generator.save_pretrained(tmp_path / "model")
    words = ["--checkpoint", tmp_path / "model", "--data-dir", data_dir, "--data", NAME]
    words += ["--no-baselines", "--max-new-tokens", 1, "--limit", BROKEN + 1]
    assert main(["evaluate", *map(str, words)]) == 3
    err = capsys.readouterr().err
    assert "1 videos could not be read: easy-test-000005: " in err


def test_without_any_video_there_is_no_score(generator, data_dir):
    (video,) = read_split(NAME, "test", data_dir, 1)
    measured = Measurements(generator, EvalConfig(), rows=1, most_questions=1)
    measured.add([video], [VideoError(video.key, "broken")])
    with pytest.raises(DataError, match=r"^no video could be read, such as easy-test-000000: bro"):
        measured.scores()


def test_no_checkpoint(tmp_path):
    with pytest.raises(ElvaError, match="no checkpoint"):
        evaluate(tmp_path)
