"""A tiny video pre-training: its configuration and random batches."""

import jax
import numpy as np

from elva_jax.config import schema

FRAMES, LENGTH, VOCAB = 3, 6, 50


def config(*, accumulate=1, batch_size=8, **contrast):
    """A SigLIP of 2 layers against a BERT of 1, on a stage named `videos`."""
    c = schema.base()
    c.model.vocab_size = VOCAB
    c.teacher.update(
        image_size=16,
        patch_size=8,
        hidden_size=16,
        intermediate_size=32,
        num_layers=2,
        num_heads=2,
        text_layers=1,
        text_length=LENGTH,
    )
    c.text_tower.update(
        kind="bert", hidden_size=24, intermediate_size=32, num_layers=1, num_heads=2, max_position=8
    )
    stage = schema.stage()
    stage.kind, stage.steps, stage.batch_size = "teacher", 1, batch_size
    stage.data.num_frames = FRAMES
    stage.data.mixture.videos = schema.source("videos.jsonl")
    stage.contrast.update(loss="infonce", projection=12, temperature=0.2)
    stage.contrast.update(contrast)
    stage.optimizer.accumulate = accumulate
    c.stages.videos, c.curriculum = stage, ("videos",)
    return c


def random_batch(rows, side=16, seed=0):
    """Clips of 1 to 3 frames and captions of 2 to 6 tokens."""
    rng = np.random.default_rng(seed)
    return {
        "pixels": rng.integers(0, 256, (rows, FRAMES, side, side, 3), np.uint8),
        "frame_mask": np.arange(FRAMES)[None] < rng.integers(1, FRAMES + 1, rows)[:, None],
        "token_ids": rng.integers(0, VOCAB, (rows, LENGTH), np.int32),
        "mask": np.arange(LENGTH)[None] < rng.integers(2, LENGTH + 1, rows)[:, None],
    }


def random_params(shapes):
    """Parameters of these shapes, without a compiled program."""
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
