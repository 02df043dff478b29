"""Tables that are whole in narrow terminals: columns go into several tables, text is never cut.

Numbers are shown on one kind of scale, whatever they are stored on: shares are in percent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

PADDING = (0, 0, 0, 1)
SPACE = 2  # terminal cells beside each column: its padding and the divider
EDGES = 1  # of box.SIMPLE_HEAD, beyond the dividers
_PERCENT = 100.0
NARROWEST = 8  # of a first column whose text wraps


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column.

    Attributes:
      title: its head.
      cells: its text, one per row; what cannot be printed is replaced.
      left: whether text is flush left.
      style: of rich; None: plain.
    """

    title: str
    cells: Sequence[str]
    left: bool = False
    style: str | None = None

    def __post_init__(self) -> None:
        """Replaces line breaks and what would command the terminal."""
        object.__setattr__(self, "title", printable(self.title))
        object.__setattr__(self, "cells", [printable(cell) for cell in self.cells])

    @property
    def width(self) -> int:
        """Terminal cells of the widest text, where none wraps."""
        return max(map(cell_len, (self.title, *self.cells)))


def fit(
    first: Sequence[Column],
    rest: Sequence[Column],
    width: int,
    *,
    total: bool = False,
    sections: Sequence[int] = (),
) -> list[Table]:
    """As few tables as hold all columns within a width.

    Args:
      first: columns that every table repeats, since they name the rows; the first one wraps where
        it is too wide.
      rest: the other columns, in order.
      width: terminal cells.
      total: whether the last row is the sum of the others, apart and bold.
      sections: numbers of the rows after which a line is drawn.
    """
    room = width - EDGES
    needed = sum(column.width + SPACE for column in first)
    widest = max((column.width + SPACE for column in rest), default=0)
    wrapped = max(NARROWEST, first[0].width - max(0, needed + widest - room))
    needed -= first[0].width - wrapped
    groups: list[list[Column]] = [[]]
    for column in rest:
        used = needed + sum(other.width + SPACE for other in groups[-1])
        if groups[-1] and used + column.width + SPACE > room:
            groups.append([])
        groups[-1].append(column)
    ends = {*sections, *({len(first[0].cells) - 2} if total else ())}
    return [_table([*first, *group], wrapped, ends, total=total) for group in groups]


def _table(columns: Sequence[Column], width: int, ends: set[int], *, total: bool) -> Table:
    """One table; `width` is that of the first column."""
    table = Table(box=box.SIMPLE_HEAD, padding=PADDING)
    for number, column in enumerate(columns):
        table.add_column(
            Text(column.title),
            justify="left" if column.left else "right",
            style=column.style,
            no_wrap=number > 0,
            overflow="fold",
            min_width=width if number == 0 else column.width,
            max_width=width if number == 0 else None,
        )
    rows = list(zip(*(column.cells for column in columns), strict=True))
    for number, row in enumerate(rows):
        last = total and number == len(rows) - 1
        table.add_row(*map(Text, row), style="bold" if last else None, end_section=number in ends)
    return table


def scale(maximum: float) -> str:
    """The largest value of a number as it is shown; shares, whose maximum is 1, are in percent."""
    return f"{_PERCENT if maximum == 1 else maximum:g}"


def format_value(value: float, maximum: float) -> str:
    """A number on the scale that `scale` names, with as many decimals as that deserves."""
    if maximum == 1:
        value, maximum = _PERCENT * value, _PERCENT
    if not math.isfinite(value):
        return "–"
    return f"{value:.{1 if maximum >= _PERCENT else 2}f}"


def printable(text: str) -> str:
    """A text in one line, without what would command the terminal."""
    text = " ".join(text.split())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
