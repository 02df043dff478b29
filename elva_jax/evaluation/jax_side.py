"""A run or converted checkpoint as one side of a comparison."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from elva_jax.checkpoints.restore import Run, SavedRun
from elva_jax.data.prompt_format import load_tokenizer
from elva_jax.evaluation.side import Answered, TextModel, square_pixels
from elva_jax.inference.batching import text_tokens
from elva_jax.inference.long_context import stretch_of, stretched
from elva_jax.inference.model import ElvaModel
from elva_jax.models.build import vision_tower
from elva_jax.models.elva import Elva
from elva_jax.models.qwen2 import Qwen2
from elva_jax.video.layout import Kind, build_layout

BLOCK = 64  # bare text is padded to multiples of this, so that few lengths are compiled


class JaxSide:
    """See `Side`."""

    def __init__(self, run: SavedRun):
        self.run = run
        self.kind = "elva" if any(path.startswith("elva/") for path in run.shapes) else "vision"
        self.vocab_size = run.config.model.vocab_size

    def _load(self) -> Run:
        return self.run.load_float32().with_dtype("float32")

    def ask(self, video: Any, prompt: str, new_tokens: int, *, merging: bool) -> Answered:
        """Runs the whole prompt at once, and answers with a cache."""
        run = self._load()
        elva = ElvaModel.from_run(run)
        elva.engine.end_ids = (-1,)
        visual = elva.read_media(video)
        prefilled = elva.prefill([[visual]], merging=merging, prompts=[prompt])
        answer = prefilled.generate([[prompt]], new_tokens)[0][0]
        parts = elva.prompt_parts(prompt, [visual])
        layout = build_layout(parts)
        stretch = stretch_of(elva.model_config, layout.length)
        model = Elva(stretched(elva.model_config, stretch))

        @jax.jit
        def forward(params, patches, layout):
            out: Any = model.apply({"params": params}, patches, layout, merging=merging)
            return model.apply({"params": params}, out.hidden, method="head"), out.layout

        batch = jax.tree.map(lambda field: field[None], layout)
        logits, left = forward(run.params["elva"], visual.patches[None], batch)
        used = np.asarray(left.kind[0] != Kind.PAD)
        return Answered(
            ids=tuple(text_tokens(parts)),
            index=np.asarray(left.position[0])[used],  # in a single example, the token's index
            logits=np.asarray(logits[0])[used],
            tokens=answer.tokens,
            length=layout.length,
            patches=np.asarray(visual.patches),
        )

    def text_model(self) -> TextModel:
        """The decoder alone."""
        run = self._load()
        tokenizer = load_tokenizer(run.config, run.tokenizer_dir)
        decoder = Qwen2(
            dataclasses.replace(run.config.model, dtype="float32", remat="none", attention="auto")
        )
        apply = jax.jit(lambda params, *inputs: decoder.apply({"params": params}, *inputs))
        params = run.params["elva"]["decoder"]

        def logits(ids: Sequence[int]) -> np.ndarray:
            length = -(-len(ids) // BLOCK) * BLOCK
            token, segment = np.zeros((2, 1, length), np.int32)
            token[0, : len(ids)], segment[0, : len(ids)] = ids, 1
            position = np.arange(length, dtype=np.int32)[None]
            return np.asarray(apply(params, token, position, segment)[0, : len(ids)])

        def encode(text: str) -> list[int]:
            return tokenizer.encode(text, add_special_tokens=False)

        return TextModel(encode=encode, logits=logits)

    def features(self, video: Any) -> dict[str, np.ndarray]:
        """A teacher's features."""
        run = self._load()
        tower = vision_tower(run.config)
        pixels = square_pixels(video, run.config.teacher.image_size)
        out = jax.jit(tower.apply)({"params": run.params["vision"]}, pixels)
        return {"penultimate": np.asarray(out.penultimate), "last": np.asarray(out.last)}
