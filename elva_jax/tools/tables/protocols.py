"""How each table is measured: its benchmarks, its rows, and what every row changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from elva_jax.tools.analysis import paper
from elva_jax.tools.tables import figures
from elva_jax.tools.tables.figures import Claim, Figures

# Inference in the paper: 32 high and 32 low frames.
HYBRID = {"high_frames": 32, "low_frames": 32, "high_edge": 672, "low_edge": 336}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One row.

    Attributes:
      figures: the paper's.
      recipe: config file that trains its checkpoint; "": any checkpoint.
      hybrid: frames of two resolutions, as in `BenchmarkConfig`; None: those of the protocol.
      reduce: how tokens are reduced in place of the checkpoint's own merging layers, where one
        checkpoint serves all rows: kind and share that is kept.
    """

    figures: Figures
    recipe: str = ""
    hybrid: Mapping[str, int] | None = None
    reduce: tuple[Literal["merge", "pool"], float] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """One table or figure.

    Attributes:
      name: as on the command line.
      title: what it shows.
      tasks: its benchmarks.
      rows: by label, in the paper's order.
      claims: what the paper says about differences of rows.
      hybrid: frames of every row; {}: as each checkpoint was trained.
      settings: whether the rows are settings of one checkpoint.
      open: whether checkpoints may have labels that are no row of the paper.
      note: what one has to know when comparing.
    """

    name: str
    title: str
    tasks: tuple[str, ...]
    rows: Mapping[str, Row]
    claims: tuple[Claim, ...] = ()
    hybrid: Mapping[str, int] = dataclasses.field(default_factory=dict)
    settings: bool = False
    open: bool = False
    note: str = ""


def _plain(rows: Mapping[str, Figures]) -> dict[str, Row]:
    return {label: Row(figures=row) for label, row in rows.items()}


def _ablation(rows: Mapping[str, Figures], table: str) -> dict[str, Row]:
    """Rows with their recipes."""
    return {
        label: Row(figures=row, recipe=f"configs/ablations.py:variant={table}_{label}")
        for label, row in rows.items()
    }


def _mixtures() -> dict[str, Row]:
    edges = {"high_edge": paper.HIGH_EDGE_TABLE6, "low_edge": paper.LOW_EDGE_TABLE6}
    return {
        f"{high}+{low}": Row(
            figures=figures.TABLE6[f"{high}+{low}"],
            hybrid={"high_frames": high, "low_frames": low, **edges},
        )
        for high, low in paper.TABLE6
    }


def _reductions() -> dict[str, Row]:
    rows = {}
    for label, row in figures.FIGURE3.items():
        kind, _, percent = label.partition("_")
        rows[label] = Row(
            figures=row,
            recipe=f"configs/ablations.py:variant=figure3_{label}",
            reduce=("merge" if kind == "merge" else "pool", int(percent) / 100),
        )
    return rows


_ALL = (
    Protocol(
        name="table1",
        title="Table 1: video benchmarks",
        tasks=figures.VIDEO,
        rows=_plain(figures.TABLE1),
        hybrid=HYBRID,
        open=True,
        note="The paper's open-ended answers are judged by a language model.",
    ),
    Protocol(
        name="table2",
        title="Table 2: losses of the pre-training",
        tasks=figures.ABLATION,
        rows=_ablation(figures.TABLE2, "table2"),
        claims=figures.CLAIMS["table2"],
        note="Ablations of the paper train on a subset of 1M examples.",
    ),
    Protocol(
        name="table3",
        title="Table 3: patch embedding",
        tasks=("msvd_qa", "videomme"),
        rows=_ablation(figures.TABLE3, "table3"),
        claims=figures.CLAIMS["table3"],
    ),
    Protocol(
        name="table4",
        title="Table 4: teacher of the guidance",
        tasks=figures.ABLATION,
        rows=_ablation(figures.TABLE4, "table4"),
        claims=figures.CLAIMS["table4"],
    ),
    Protocol(
        name="table6",
        title="Table 6: frames of high (672 px) and low (224 px) resolution",
        tasks=("videomme",),
        rows=_mixtures(),
        claims=figures.CLAIMS["table6"],
        settings=True,
    ),
    Protocol(
        name="table10",
        title="Table 10: its contents are not known here; the image benchmarks",
        tasks=figures.IMAGE,
        rows=_plain(figures.TABLE10),
        open=True,
    ),
    Protocol(
        name="fig3",
        title="Figure 3: merging and pooling, by the share of tokens that is kept",
        tasks=("videomme", "mlvu"),
        rows=_reductions(),
        claims=figures.CLAIMS["fig3"],
        settings=True,
    ),
)
PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in _ALL}
