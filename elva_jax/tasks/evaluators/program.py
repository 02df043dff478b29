"""Forward passes over held-out rows: compiled programs on the mesh of the training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from elva_jax.models.qwen2 import vocabulary_head
from elva_jax.parallel.collectives import barrier
from elva_jax.parallel.mesh import replicated, shard_batch
from elva_jax.parallel.sharding import on_mesh
from elva_jax.tasks import losses
from elva_jax.tasks.video_llm import VideoLlmTask
from elva_jax.training.setup import TrainSetup


class MeshProgram:
    """`(params, frozen, rows) -> arrays`, compiled at the first call; it changes no argument.

    Args:
      setup: of the stage.
      function: of the parameters, the frozen trees and the rows of all processes.
      label: the same in every process, another one for each program.
    """

    def __init__(
        self, setup: TrainSetup, function: Callable[[Any, Any, Any], dict[str, Any]], label: str
    ):
        self._setup, self._label = setup, label
        self._function = jax.jit(function, out_shardings=replicated(setup.mesh))
        self._program: jax.stages.Compiled | None = None

    def __call__(self, params: Any, frozen: Any, rows: Any) -> dict[str, Any]:
        """The result for the rows of all processes, given those of this one, as NumPy arrays."""
        batch = shard_batch(rows, self._setup.mesh)
        if self._program is None:
            with on_mesh(self._setup.mesh, self._setup.rules):
                self._program = self._function.lower(params, frozen, batch).compile()
            barrier(f"evaluation compiled, {self._label}")
        return jax.device_get(self._program(params, frozen, batch))


class ScoreRows:
    """`(params, frozen, rows) -> scores` of the tokens of answers.

    Args:
      setup: of the stage.
      task: its task.
      merging: whether tokens merge.
      features: whether to return the features that the contrastive loss compares.
    """

    def __init__(self, setup: TrainSetup, task: VideoLlmTask, *, merging: bool, features: bool):
        self._task, self._merging, self._features = task, merging, features
        self._program = MeshProgram(setup, self._scores, f"merging {merging}")

    def __call__(self, params: Any, frozen: Any, rows: Any) -> dict[str, Any]:
        """The scores of the rows of all processes.

        Args:
          params: the stage's parameters.
          frozen: the trees that the stage's loss reads.
          rows: this process's rows: a batch of the stage, with their numbers `row` [b].

        Returns:
          row [B]; weight, nll and hit [B, S] of the tokens after merging, of which those with a
          weight are learned; overflow []; and with features ours and theirs [B, F, C] by teacher,
          valid [B, F] and owner [B, F] as in `rows`.
        """
        return self._program(params, frozen, rows)

    def _scores(self, params: Any, frozen: Any, batch: Any) -> dict[str, Any]:
        task = self._task
        out = task.forward(params, batch, merging=self._merging)
        chunk = losses.head_chunk(out.hidden.shape[1], task.config.model.vocab_size)
        head = vocabulary_head(params["elva"]["decoder"])
        nll, hit = losses.token_scores(out.hidden, head, out.layout.target, chunk)
        overflow = sum((jnp.sum(merge.overflow) for merge in out.merges), jnp.int32(0))
        scores: dict[str, Any] = {
            "row": batch["row"],
            "weight": out.layout.loss_weight,
            "nll": nll,
            "hit": hit,
            "overflow": overflow,
        }
        if self._features:
            ours, theirs, valid = task.frame_features(params, frozen, out, batch)
            scores |= {"ours": ours, "theirs": theirs, "valid": valid, "owner": batch["owner"]}
        return scores
