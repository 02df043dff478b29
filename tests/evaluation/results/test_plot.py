"""The figure of scores."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from elva_jax.errors import ConfigError
from elva_jax.evaluation.results import plot


def test_figure_has_bars_and_ink(run, tmp_path):
    run[0] = dataclasses.replace(run[0], title="Cost in $x_ and ${ \x1b")
    main = run[0].scores["generated"].main
    main = dataclasses.replace(main, low=20.0, high=40.0)
    scores = dataclasses.replace(run[0].scores["generated"], main=main)
    bounded = dataclasses.replace(run[0], scores={**run[0].scores, "generated": scores})
    bounded = dataclasses.replace(bounded, scores={**bounded.scores, "\x1b[31m_$way": scores})
    pictures = []
    for name, evaluation in (("without.png", run[0]), ("with.png", bounded)):
        with Image.open(plot.save([evaluation, run[1]], tmp_path / name)) as image:
            pictures.append(np.asarray(image.convert("L")))
    assert pictures[0].shape[1] >= 1000
    assert 0.01 < (pictures[0] < 200).mean() < 0.9
    assert (pictures[0] != pictures[1]).any()  # the line of the interval
    assert plot.save(run, tmp_path / "run.svg").read_text().startswith("<?xml")


def test_the_caption_has_what_a_comparison_needs(run):
    run = [
        dataclasses.replace(each, settings={**each.settings, "prompts_hash": f"p{n}"})
        for n, each in enumerate(run)
    ]
    *shared, first, second = plot._caption(run).splitlines()
    words = " ".join(shared)
    assert words.startswith("checkpoint runs/tiny · step 200 · weights_hash 3fa9c01b22d4e680 · dty")
    assert words.endswith("frames 8 · merging yes · versions.elva_jax 0.1.0 · versions.jax 0.10.2")
    assert (first, second) == ("Video-MME: prompts_hash p0", "GQA: prompts_hash p1")


def test_other_endings_are_refused(run, tmp_path):
    with pytest.raises(ConfigError, match=r"--figure .*run\.txt: is no picture"):
        plot.save(run, tmp_path / "run.txt")
