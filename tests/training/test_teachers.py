"""Every tower guides: two steps of a stage whose only loss is a random teacher's guidance."""

import jax
import numpy as np
import pytest

from elva_jax.data.tokenizer import load
from elva_jax.tasks.initial_weights import frozen_trees
from elva_jax.tasks.open_data import open_data
from elva_jax.utils.trees import flatten_paths


@pytest.mark.parametrize("kind", ["dinov2", "eva_clip", "languagebind", "hiera"])
def test_two_steps_of_guidance_train_the_decoder(
    tiny_run, data_dir, tmp_path, stage_of, with_random_towers, kind
):
    config = tiny_run.get_config(f"video+{kind}")
    config.data_dir = str(data_dir)
    merging = ("merge_layers", "merge_policies", "merge_thresholds", "merge_ratios")
    config.model.update(num_layers=1, **dict.fromkeys(merging, ()))
    stage = config.stages.video
    stage.batch_size, stage.loss.generation = 2, 0.0
    stage.optimizer.update(name="adamw", weight_decay=0.0)
    with_random_towers(config)
    step, state, setup = stage_of(config, "video", steps=2)
    frozen = frozen_trees(setup, tmp_path)
    before = jax.device_get(flatten_paths(state.params))
    batches = open_data(setup.task, load(data_dir / "tokenizer")).open_batches()
    for _ in range(2):
        state, metrics = step(state, frozen, next(batches))
        for name in ("loss", "tube", "contrastive"):
            assert np.isfinite(metrics[name])
            assert metrics[name] > 0
    batches.close()
    after = flatten_paths(state.params)
    for path in ("q_proj", "v_proj", "down_proj"):
        path = f"elva/decoder/layers/{path}/kernel"
        assert np.mean(after[path] != before[path]) > 0.9, path
    words = "elva/decoder/embed_tokens"  # of words that do not occur, which have no gradient
    assert np.mean(after[words] == before[words]) > 0.5
