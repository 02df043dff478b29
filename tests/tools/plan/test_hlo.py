"""Tests of the analysis of program texts with known costs."""

import pytest

from elva_jax.errors import ElvaError
from elva_jax.tools.plan import hlo

PROGRAM = """\
HloModule m

%body (p: (s32[], f16[8,4])) -> (s32[], f16[8,4]) {
  %p = (s32[], f16[8,4]{1,0}) parameter(0)
  %x = f16[8,4]{1,0} get-tuple-element(%p), index=1
  %w = f16[4,4]{1,0} constant({...})
  %dot.1 = f16[8,4]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %gathered = f16[32,4]{1,0} all-gather(%dot.1), channel_id=1, replica_groups=GROUPS, dimensions={0}
  ROOT %out = (s32[], f16[8,4]{1,0}) tuple(%x, %dot.1)
}

%widen (q: f16[8,4]) -> f32[8,4] {
  %q = f16[8,4]{1,0} parameter(0)
  ROOT %wide = f32[8,4]{1,0} convert(%q)
}

%slice (r: f32[8,8]) -> f32[2,8] {
  %r = f32[8,8]{1,0} parameter(0)
  ROOT %piece = f32[2,8]{1,0} dynamic-slice(%r), dynamic_slice_sizes={2,8}
}

ENTRY %main (a: f16[8,4], b: f32[8,4]) -> f32[2,8] {
  %a = f16[8,4]{1,0} parameter(0)
  %b = f32[8,4]{1,0} parameter(1)
  %loop = (s32[], f16[8,4]{1,0}) while(%a), condition=%c, body=%body, backend_config={TRIPS}
  %f = f32[8,4]{1,0} fusion(%a), kind=kLoop, calls=%widen
  %dot.2 = f32[8,8]{1,0} dot(%f, %f), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  %dot.3 = f32[8,8]{1,0} dot(%b, %b), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  %sum = f32[8,8]{1,0} all-reduce(%dot.3), replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add
  ROOT %mine = f32[2,8]{1,0} fusion(%sum), kind=kLoop, calls=%slice
}
"""


def program(groups="{{0,1,2,3},{4,5,6,7}}", trips='"known_trip_count":{"n":"5"}'):
    return PROGRAM.replace("GROUPS", groups).replace("TRIPS", trips)


def test_products_are_counted_by_width_and_trip_count():
    """Values that the CPU backend widened from 16 bits count as 16-bit values."""
    read = hlo.read(program(), 8)
    assert read.half == 5 * 2 * 8 * 4 * 4 + 2 * 8 * 8 * 4
    assert read.single == 2 * 8 * 8 * 4


@pytest.mark.parametrize(
    ("groups", "first"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", (0, 1, 2, 3)),
        ("[2,4]<=[8]", (0, 1, 2, 3)),
        ("[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("mesh['a'=2,'b'=4] {'b'}", (0, 1, 2, 3)),
        ("mesh['a'=2,'b'=2,'c'=2] {'a','c'}", (0, 1, 4, 5)),
        ("mesh['a'=1,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'b'}", (0, 1, 2, 3)),
        ("mesh['a'=1,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'c'}", (0, 4)),
        ("{}", tuple(range(8))),
    ],
)
def test_device_groups_are_read_in_every_notation(groups, first):
    gather, reduction = hlo.read(program(groups), 8).collectives
    assert gather == hlo.Collective(
        kind="all-gather", size=32 * 4 * 2, group=first, times=5, scattered=False
    )
    assert reduction == hlo.Collective(
        kind="all-reduce", size=8 * 8 * 4, group=(0, 4), times=1, scattered=True
    )


def test_a_loop_whose_length_the_data_tell_runs_as_often_as_it_is_told():
    assert hlo.read(program(trips=""), 8, open_trips=5) == hlo.read(program(), 8)
    assert hlo.read(program(), 8, open_trips=9) == hlo.read(program(), 8)


def test_programs_that_cannot_be_counted_are_refused():
    with pytest.raises(ElvaError, match="loop loop does not state its trip count"):
        hlo.read(program(trips=""), 8)
    with pytest.raises(ElvaError, match="groups devices by"):
        hlo.read(program("mesh['a'=8] {'a':(1)2}"), 8)
