"""Throughput of `elva serve`'s engine, where this version has one."""

from __future__ import annotations

import importlib
import importlib.util

from elva_jax.tools.gpu_report.context import Context


def run(context: Context) -> None:
    """Serves 16 clients."""
    if importlib.util.find_spec("elva_jax.tools.bench.serve") is None:
        context.emit({"case": "serve", "skipped": "this version has no `elva bench serve`"})
        return
    serve = importlib.import_module("elva_jax.tools.bench.serve")
    with context.case("serve") as row:
        row |= serve.gpu_report(dry=context.dry)
