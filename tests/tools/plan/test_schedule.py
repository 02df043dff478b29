"""Tests of the number of steps of the paper's stages."""

import pytest

from elva_jax.config.load import load
from elva_jax.errors import ConfigError
from elva_jax.tasks.registry import make_task
from elva_jax.tools.plan.schedule import schedule


@pytest.mark.parametrize(
    ("size", "millions"), [("7b", (4.0, 7.0, 0.843)), ("7b_hd", (4.0, 7.0, 3.843))]
)
def test_every_stage_has_the_papers_data(config_dir, size, millions):
    """The data are those of Table 7 and of the text."""
    config = load(f"{config_dir}/elva.py:size={size}")
    for name, epochs, examples in zip(
        ("stage1", "stage2", "stage3"), (1, 2, 1), millions, strict=True
    ):
        found = schedule(make_task(config, name))
        assert found.source == f"{epochs} epoch(s) of the paper's {examples:.2f}M examples"
        assert found.tokens == config.stages[name].batch_size * config.stages[name].data.seq_len
        assert found.steps > 0
    config.stages.stage3.steps = 77
    assert schedule(make_task(config, "stage3")).steps == 77


def test_other_data_need_a_number_of_steps(config_dir):
    config = load(f"{config_dir}/elva.py:size=7b,stage=3")
    mixture = config.stages.stage3.data.mixture
    with mixture.unlocked():
        mixture.mine = mixture.llava_video
    with pytest.raises(
        ConfigError, match=r"how many examples mine has; set --config\.stages\.stage3\.steps=N"
    ):
        schedule(make_task(config, "stage3"))
