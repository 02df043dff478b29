"""Asks a run the questions of a study: `python -m elva_jax.tools.study.measure JOB.json OUT.json`.

A process of its own, so that the memory and the programs of one run do not meet those of the next.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from elva_jax.utils.json import save_json
from elva_jax.utils.read import read_json


def measure(run: str, evaluate: dict[str, Any]) -> dict[str, Any]:
    """The answers of a run.

    Returns:
      items: per question that could be asked its video, family and credit by column; columns: macro
      accuracies; tokens, seconds, data, settings, versions and parameters as in `EvalResult`.
    """
    import elva_jax

    elva_jax.enable_compilation_cache()
    config = elva_jax.EvalConfig(**{"baselines": False, **evaluate})
    result = elva_jax.evaluate(run, config)
    return {
        "items": [
            {
                "video": item.question.video,
                "family": item.question.family,
                "question": item.question.text,
                "credit": item.credit,
            }
            for item in result.predictions
            if item.credit
        ],
        "macro": {column: score.accuracy for column, score in result.macro.items()},
        "parameters": result.model["parameters"],
        "tokens": result.tokens,
        "seconds": result.seconds,
        "data": result.data,
        "settings": result.settings,
        "versions": result.versions,
    }


if __name__ == "__main__":
    job = read_json(sys.argv[1])
    save_json(measure(job["run"], job["evaluate"]), Path(sys.argv[2]))
