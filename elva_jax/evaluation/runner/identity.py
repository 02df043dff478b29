"""The facts that decide an answer: the weights, the settings and the question, as short hashes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elva_jax.data.example import Media
from elva_jax.evaluation.benchmarks.base import Question
from elva_jax.evaluation.runner.settings import BenchmarkConfig
from elva_jax.inference.model import ElvaModel
from elva_jax.utils.json import jsonable
from elva_jax.version import __version__
from elva_jax.video.hybrid import Hybrid

DIGITS = 16  # of a hash, in hexadecimal


def model_hash(model: ElvaModel) -> str:
    """A hash of what the model is besides its weights: architecture, vocabulary, data settings."""
    described = {
        "model": dataclasses.asdict(model.model_config),
        "data": dataclasses.asdict(model.data),
        "vocabulary": sorted(model.tokenizer.get_vocab().items()),
    }
    return digest(jsonable(described))


def describe_model(model: ElvaModel) -> dict[str, Any]:
    """The facts of the model that an answer depends on, as JSON."""
    return {
        "model_hash": model_hash(model),
        "versions": {"elva_jax": __version__},
        "dtype": model.model_config.dtype,
        # Without the key where it says nothing: journals of older versions continue.
        **({"weights": model.weights} if model.weights else {}),
    }


def describe_reading(
    model: ElvaModel, config: BenchmarkConfig, hybrid: Hybrid | None
) -> dict[str, Any]:
    """The settings of reading media that an answer depends on, as JSON."""
    return {
        "frames": hybrid.frames if hybrid else config.num_frames or model.data.num_frames,
        "longest_edge": hybrid.high_edge if hybrid else model.data.longest_edge,
        "hybrid": dataclasses.asdict(hybrid) if hybrid else None,
        "merging": config.merging,
    }


def question_hash(question: Question) -> str:
    """A hash of what the model is asked.

    Of a file only its name counts, so that a folder of data may be moved.
    """
    return digest(
        {
            "media": [_medium(medium) for medium in question.media],
            "prompt": question.prompt,
            "text": question.text,
            "options": question.options,
        }
    )


def prompts_hash(questions: Sequence[Question]) -> str:
    """A hash of the prompts of a benchmark: the version of their wording and of its files."""
    return digest({question.key: question.prompt for question in questions})


def _medium(medium: Media) -> list[Any]:
    source = medium.source
    if isinstance(source, bytes):
        name: Any = hashlib.sha256(source).hexdigest()
    elif isinstance(source, str):
        name = Path(source).name
    else:
        name = [Path(path).name for path in source]
    return [name, medium.kind, medium.start, medium.end, medium.frames]


def digest(value: Mapping[str, Any]) -> str:
    """A short hash of a JSON-able value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:DIGITS]
