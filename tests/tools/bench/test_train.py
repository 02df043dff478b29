"""`elva bench train`: the batch it trains on, and both trainers through the command line."""

import json

import jax
import numpy as np
import pytest

from elva_jax.cli import main
from elva_jax.config.load import load, resolve
from elva_jax.data.packing import RowCapacity
from elva_jax.tasks.registry import make_task
from elva_jax.tools.bench.train_step import random_batch
from elva_jax.video.layout import Kind


@pytest.mark.parametrize("stage", ["stage1", "stage2", "stage3"])
def test_random_rows_have_the_shapes_of_the_stage_and_are_nearly_full(config_dir, stage):
    config = load(f"{config_dir}/elva.py:size=1_5b,stage={stage[-1]}", [])
    config.stages[stage].batch_size = 2
    task = make_task(resolve(config), stage)
    batch, most = random_batch(task), RowCapacity.of_stage(task.stage)
    for name, shapes in task.batch_shapes().items():
        if name != "layout":
            shapes_and_types = [
                jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (batch[name], shapes)
            ]
            assert shapes_and_types[0] == shapes_and_types[1], name
    layout = batch["layout"]
    assert layout.kind.shape == (2, most.tokens)
    used = (layout.kind != Kind.PAD).mean()
    assert used > 0.75
    patches = int((layout.kind[0] == Kind.PATCH).sum())
    assert layout.patch_index[0].max() == patches - 1 < most.patches
    assert len(np.unique(layout.frame[0][layout.frame[0] >= 0])) <= most.frames
    assert (layout.loss_weight > 0).sum() > 0


@pytest.mark.parametrize("trainer", ["ours", "pytorch"])
def test_both_trainers_report_their_speed(config_dir, tmp_path, capsys, trainer):
    report = tmp_path / "train.json"
    arguments = ["bench", "train", "--config", f"{config_dir}/tiny.py", "--stage", "sft"]
    arguments += ["--repeats", "1", "--trainer", trainer, "--json", str(report)]
    assert main([*arguments, "--config.stages.sft.batch_size=2"]) == 0
    found = json.loads(report.read_text())
    assert found["batch_size"] == 2
    assert found["tokens_per_second"] == found["tokens"] / found["seconds"]["median"]
    assert trainer in capsys.readouterr().out
