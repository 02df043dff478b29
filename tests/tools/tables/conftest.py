"""A run of the tiny model, and a Video-MME of three clips."""

import json

import pytest

from elva_jax import testing
from elva_jax.checkpoints.save import save_weights
from elva_jax.cli import main
from elva_jax.config.serialize import config_to_dict

COLORS = ("red", "green", "blue")


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory):
    model, folder = testing.tiny_model(), tmp_path_factory.mktemp("run")
    save_weights(folder / "video", {"elva": model.params}, model.config, "video")
    (folder / "config.json").write_text(json.dumps(config_to_dict(model.config)))
    model.tokenizer.save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture(scope="session")
def data_root(tmp_path_factory):
    """One question about each of three clips."""
    root, records = tmp_path_factory.mktemp("benchmarks"), []
    (root / "data").mkdir()
    for index, color in enumerate(COLORS):
        video = testing.tiny_video(color=color, seed=index)
        testing.write_video(root / "data" / f"{index}.mp4", video)
        records.append(
            {
                "videoID": str(index),
                "question_id": f"{index}-1",
                "duration": "short",
                "question": "What color is the square?",
                "options": [
                    f"{letter}. {name}" for letter, name in zip("ABC", COLORS, strict=True)
                ],
                "answer": "ABC"[index],
            }
        )
    (root / "videomme.json").write_text(json.dumps(records))
    return root


@pytest.fixture
def bench(capsys, tmp_path):
    """`bench(*words)` returns exit status, output, errors, and the report if there is one."""

    def run(*words):
        file = tmp_path / "report.json"
        try:
            status = main(["bench", *map(str, words), "--json", str(file)])
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return status, out, err, json.loads(file.read_text()) if file.exists() else None

    return run
