"""The functions that the task files name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from elva_jax.evaluation.lmms import judging, open_qa


def msvd_docs(dataset: Any) -> Any:
    """The documents of MSVD-QA."""
    return _docs("msvd_qa", dataset)


def msrvtt_docs(dataset: Any) -> Any:
    """The documents of MSRVTT-QA."""
    return _docs("msrvtt_qa", dataset)


def tgif_docs(dataset: Any) -> Any:
    """The documents of TGIF-QA."""
    return _docs("tgif_qa", dataset)


def _docs(name: str, dataset: Any) -> Any:
    """The documents below the folder that the environment names, or those of `data_files`."""
    if "question" in dataset.column_names:
        return dataset
    return Dataset.from_list(open_qa.docs_of(name))


def visual(doc: Mapping[str, Any]) -> list[str]:
    """The path of the video, whether it exists or not."""
    return [doc["video"]]


def text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, Any] | None = None) -> str:
    """The prompt."""
    return open_qa.prompt(doc, lmms_eval_specific_kwargs)


def process(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """The metrics of one answer."""
    return open_qa.grade(doc, results[0], judging.configured())


def total(counts: Sequence[int]) -> int:
    """The sum, for counts."""
    return sum(counts)


mean_score = open_qa.mean_score
