"""Continuous batching: requests join and leave a running batch at token boundaries.

    submit ─ queue ─ prefill (once per prefix) ─ feed the question ─┐
                                                                    ▼
                      slots 0 … R-1:  one decode program for all that run ─ tickets

`requests` has what goes in and what comes out, `engine` the thread that owns the devices.
"""

from elva_jax.inference.continuous.engine import ContinuousEngine
from elva_jax.inference.continuous.requests import (
    Delta,
    Done,
    EngineSettings,
    GenerationRequest,
    Seconds,
    Stats,
    from_parts,
    request,
)
from elva_jax.inference.continuous.ticket import Ticket

__all__ = [
    "ContinuousEngine",
    "Delta",
    "Done",
    "EngineSettings",
    "GenerationRequest",
    "Seconds",
    "Stats",
    "Ticket",
    "from_parts",
    "request",
]
