"""Tests that the code reads the example in docs/data.md."""

import re
from pathlib import Path

import pytest

from elva_jax.config import mixtures
from elva_jax.config.load import load
from elva_jax.data import sources

ROOT = Path(__file__).parents[3]


@pytest.fixture
def blocks():
    """The first code block of each language, by language."""
    found = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs" / "data.md").read_text(), re.DOTALL)
    return dict(reversed(found))


def test_the_example_can_be_read(blocks, tmp_path, monkeypatch):
    (tmp_path / "my" / "videos").mkdir(parents=True)
    (tmp_path / "my" / "notes.json").write_text(blocks["json"])
    (tmp_path / "mine.py").write_text(blocks["python"])
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    config = load("mine.py")
    (source,) = config.stages.sft.data.mixture.values()
    dog, night = sources.open_examples(source, config.data_dir)
    assert [(turn.question, turn.answer) for turn in dog.turns] == [
        ("<video>\nWhat does the dog bring back?", "A red ball.")
    ]
    assert [medium.source for medium in night.media] == [
        str(tmp_path.resolve() / "my" / "videos" / "street" / "night.mkv")
    ]
    assert len(night.turns) == 2


def test_the_mixture_of_the_example_can_be_read(blocks, tmp_path):
    (tmp_path / "mix.yaml").write_text(blocks["yaml"])
    mixture = mixtures.from_yaml(tmp_path / "mix.yaml", root="/mnt/media")
    assert {label: (source.sampling, source.weight) for label, source in mixture.items()} == {
        "llava_665k": ("first:10%", 1.0),
        "clips": ("random:20000", 2.0),
    }
