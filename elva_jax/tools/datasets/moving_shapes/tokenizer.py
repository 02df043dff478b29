"""The tokenizer of the moving_shapes data sets."""

from __future__ import annotations

import os
from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from elva_jax.data.tokenizer import build
from elva_jax.tools.datasets.moving_shapes import records


def build_for_moving_shapes(
    folder: str | os.PathLike,
    configs: Sequence[str] = ("easy", "hard"),
    *,
    vocab_size: int = 768,
    scenes: int = 1500,
) -> PreTrainedTokenizerFast:
    """Builds the tokenizer from the texts of sampled scenes, without rendering; takes seconds."""
    texts, words = [], set()
    for config in configs:
        for split in ("image", "train"):
            for index in range(scenes // 2):
                annotation = records.annotation_of(config, 0, split, index, scenes)
                turns = [
                    *annotation["captions"]["object"],
                    *annotation["captions"]["caption"],
                    *annotation["questions"],
                ]
                texts += [text for turn in turns for text in (turn["question"], turn["answer"])]
                words |= {
                    word
                    for turn in annotation["questions"]
                    for option in turn["options"]
                    for word in option.split()
                }
    texts += [
        "Answer with the letter.",
        *(f"{letter}. {word}" for letter in "ABCD" for word in sorted(words)),
    ]
    return build(texts, folder, vocab_size, words=(*sorted(words), *"ABCD"))
