"""The table, the JSON file and the figure of a result."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from elva_jax.evaluation import report
from elva_jax.utils.json import jsonable, save_json


def score(accuracy, stderr=0.01):
    return {"accuracy": accuracy, "stderr": stderr}


@pytest.fixture
def result():
    return {
        "data": {
            "name": "moving_shapes/easy",
            "split": "test",
            "videos": 3,
            "questions": 7,
            "unreadable": ["k7: broken"],
            "prompts_hash": "6577e40e7a119303",
        },
        "settings": {"merging": True, "num_frames": 8, "hybrid": None},
        "model": {"weights_hash": "3fa9c01b22d4e680", "dtype": "float32", "step": 200},
        "config": {"model": {"merge_layers": (1, 2)}},
        "versions": {"elva_jax": "0.1.0", "jax": "0.10.2"},
        "families": {
            "colour": {
                "count": 4,
                "open": score(0.75),
                "likelihood": score(1.0),
                "any_object": score(0.25),
            },
            "order": {
                "count": 3,
                "open": score(float("nan"), float("nan")),
                "likelihood": score(1 / 3),
                "any_object": score(0.5),
            },
        },
        "macro": {
            "open": score(0.75),
            "likelihood": score(np.float64(2 / 3)),
            "any_object": score(0.375),
        },
        "tokens": {"visual_kept": 0.514},
        "answers": {"total": 7, "empty": 1, "unfinished": 2, "outside_options": 3},
    }


def printed(result, width=200) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    report.table(result, console)
    return console.export_text()


def test_table_states_scores_baselines_and_unusable_answers(result):
    text = printed(jsonable(result))
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}
    assert rows["colour"] == ["4", "75.0±1.0", "100.0±1.0", "25.0±1.0"]
    assert rows["order"] == ["3", "–", "33.3±1.0", "50.0±1.0"]
    assert rows["macro"] == ["7", "75.0±1.0", "66.7±1.0", "37.5±1.0"]
    words = " ".join(text.split())
    assert "7 written answers: 1 empty, 2 cut off, 3 equal to none of the options" in words
    assert "51 % of the visual tokens remain" in words
    assert "1 videos could not be read" in words
    assert words.endswith(
        "step 200 · weights_hash 3fa9c01b22d4e680 · prompts_hash 6577e40e7a119303 · dtype float32 ·"
        " num_frames 8 · merging True · elva_jax 0.1.0 · jax 0.10.2"
    )
    assert "moving_shapes/easy [test]: 3 videos, merging on" in words


def test_a_model_without_merging_layers_has_no_merging_that_is_on(result):
    result["config"]["model"]["merge_layers"] = ()
    assert "3 videos, no merging layers" in " ".join(printed(result).split())


@pytest.mark.parametrize("count", [1931, 10_000_000])
@pytest.mark.parametrize("width", [40, 60, 80])
def test_table_is_whole_in_narrow_terminals(result, count, width):
    for row in (*result["families"].values(), result["macro"]):
        row.update({key: score(1.0, 0.123) for key in report.COLUMNS})
    result["families"]["colour"]["count"] = count
    result["data"]["questions"] = count + 3
    text = printed(result, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    words = text.split()
    assert words.count("100.0±12.3") == 3 * len(report.COLUMNS)
    tables = words.count("macro")
    assert words.count("colour") == words.count(str(count)) == tables
    assert words.count(str(count + 3)) == tables
    assert words.count("family") == tables <= {40: 6, 60: 3, 80: 2}[width]


def test_json_is_strict_and_complete(result, tmp_path):
    path = save_json(result, tmp_path / "deep" / "result.json")
    loaded = json.loads(
        path.read_text(encoding="utf-8"),
        parse_constant=lambda name: pytest.fail(f"{name} is not JSON"),
    )
    assert loaded["families"]["order"]["open"] == {"accuracy": None, "stderr": None}
    assert loaded["macro"]["likelihood"]["accuracy"] == 2 / 3
    assert loaded == jsonable(result)


def test_figure_is_a_picture_with_ink(result, tmp_path):
    path = report.figure(result, tmp_path / "accuracy.png")
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.shape[1] >= 1000
    assert 0.01 < (pixels < 200).mean() < 0.9
