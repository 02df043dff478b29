"""Peak speed and bandwidth of cards by their names, from the makers' data sheets."""

from __future__ import annotations

import dataclasses
import re


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """The limits that shares are relative to; None: unknown, so shares are left out."""

    name: str
    flops: float | None  # FLOP/s of dense bfloat16 products that sum in float32
    bandwidth: float | None  # bytes/s of the card's memory


# Words that a card's name holds, TFLOP/s, TB/s; the first line whose words are all there counts.
_CARDS: tuple[tuple[str, float, float], ...] = (
    ("GH200", 989, 4.0),
    ("B200", 2250, 8.0),
    ("H200", 989, 4.8),
    ("H100 NVL", 835, 3.9),
    ("H100 PCIE", 756, 2.0),
    ("H100", 989, 3.35),
    ("A100 PCIE 40GB", 312, 1.555),
    ("A100 PCIE", 312, 1.935),
    ("A100 80GB", 312, 2.039),
    ("A100", 312, 1.555),
    ("A40", 149.7, 0.696),
    ("L40S", 362, 0.864),
    ("L40", 181, 0.864),
    ("L4", 121, 0.3),
    ("A10G", 70, 0.6),
    ("A10", 125, 0.6),
    ("RTX A6000", 154.8, 0.768),
    ("RTX 6000 ADA", 364, 0.96),
    ("RTX 5090", 209.5, 1.792),
    ("RTX 4090", 165.2, 1.008),
    ("RTX 3090", 71, 0.936),
)


def card_of(name: str, tflops: float = 0.0, terabytes: float = 0.0) -> Card:
    """The card that a driver calls `name`.

    Args:
      name: such as "NVIDIA A100-SXM4-80GB".
      tflops: TFLOP/s that take precedence over the table's; 0: none.
      terabytes: TB/s, likewise.
    """
    words = set(re.findall(r"[A-Z0-9]+", name.upper()))
    known = next((line for line in _CARDS if set(line[0].split()) <= words), None)
    peak, speed = tflops or (known[1] if known else 0), terabytes or (known[2] if known else 0)
    return Card(
        name=name, flops=peak * 1e12 if peak else None, bandwidth=speed * 1e12 if speed else None
    )


def plan_device(name: str) -> str:
    """The key of `tools.plan.hardware.DEVICES` for a card; memory does not depend on it."""
    words = set(re.findall(r"[A-Z0-9]+", name.upper()))
    kinds = {
        "h200": {"H200"},
        "h100": {"H100"},
        "a100-80g": {"A100", "80GB"},
        "a100-40g": {"A100"},
        "rtx4090": {"4090"},
        "a10-24g": {"A10"},
    }
    return next((kind for kind, needed in kinds.items() if needed <= words), "a100-80g")
