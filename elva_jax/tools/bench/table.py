"""Plain text tables for the benches."""

from __future__ import annotations

import io
from collections.abc import Sequence

WIDTH = 200  # characters; a table takes only as many as it needs


def text_table(columns: Sequence[str], rows: Sequence[Sequence[str] | None], words: int = 1) -> str:
    """An aligned table without colors.

    Args:
      columns: the headings.
      rows: cells as text; None separates groups of rows.
      words: how many of the first columns hold words, aligned to the left; the others hold numbers,
        aligned to the right.
    """
    # rich takes a while to import, and `elva --help` imports this module.
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), show_edge=False)
    for index, heading in enumerate(columns):
        table.add_column(heading, justify="left" if index < words else "right", no_wrap=True)
    for row in rows:
        if row is None:
            table.add_section()
        else:
            table.add_row(*row)
    out = io.StringIO()
    Console(file=out, width=WIDTH, color_system=None, highlight=False, markup=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())
