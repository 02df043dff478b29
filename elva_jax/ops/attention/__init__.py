"""Grouped-query attention, causal over packed sequences and their turns.

    out[i] = sum over j of softmax_j(q[i] . k[j] / sqrt(Dh)) v[j],  where j may be any key with
      j <= i                        (causal)
      segment[j] == segment[i]      (the same packed example)
      turn[j] in {0, turn[i]}       (what all turns share, or the query's own turn)

A row with an example of two independent turns, then a second example; # marks the attended keys:

    segment  turn  | key  0 1 2 3 4 5 6
       1      0    |  0   # . . . . . .
       1      0    |  1   # # . . . . .
       1      1    |  2   # # # . . . .
       1      1    |  3   # # # # . . .
       1      2    |  4   # # . . # . .
       2      0    |  5   . . . . . # .
       2      0    |  6   . . . . . # #

`frame_attention` opens the frames of a video to both directions.
"""

from elva_jax.ops.attention.dispatch import Implementation, choose_implementation, packed_attention
from elva_jax.ops.attention.frames import frame_attention, frame_reach
from elva_jax.ops.attention.stand_in import replaced_by

__all__ = [
    "Implementation",
    "choose_implementation",
    "frame_attention",
    "frame_reach",
    "packed_attention",
    "replaced_by",
]
