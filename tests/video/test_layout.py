"""Tests of TokenLayout against a direct implementation of its rules, one token at a time."""

import subprocess
import sys
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elva_jax.errors import LayoutError
from elva_jax.video.counts import count
from elva_jax.video.layout import (
    Clip,
    Kind,
    Text,
    TokenLayout,
    build_layout,
    clip_tokens,
    frame_tokens,
    pack,
)

GRID = st.tuples(st.integers(1, 4), st.integers(1, 4))
CLIP = st.builds(Clip, st.lists(GRID, min_size=1, max_size=4), bare=st.booleans())
IDS = st.lists(st.integers(1, 900), min_size=1, max_size=5)
QUESTION = st.builds(Text, IDS)
ANSWER = st.builds(Text, IDS, weight=st.sampled_from([1.0, 0.5]))


@st.composite
def examples(draw):
    """Clips and questions, then turns of clips, question and answer; answers follow text."""
    parts = draw(st.lists(st.one_of(CLIP, QUESTION), max_size=4))
    for _ in range(draw(st.integers(1, 3))):
        parts += [*draw(st.lists(CLIP, max_size=1)), draw(QUESTION), draw(ANSWER)]
    return parts


def plain(parts):
    """The layout as one dictionary per token."""
    tokens = []
    patches = frames = rows = tubes = 0
    for part in parts:
        if isinstance(part, Text):
            for token in part.token_ids:
                tokens.append(dict(kind=Kind.TEXT, token_id=token, weight=part.weight))
            continue
        names = {}  # (grid, kind, position) -> tube
        for height, width in part.grids:
            if not part.bare:
                tokens.append(dict(kind=Kind.FRAME, frame=frames))
            for r in range(height):
                for c in range(width):
                    tube = names.setdefault((height, width, "patch", r, c), len(names) + tubes)
                    cell = (r, c, height, width)
                    tokens.append(
                        dict(
                            kind=Kind.PATCH,
                            frame=frames,
                            row=rows + r,
                            patch_index=patches,
                            cell=cell,
                            tube=tube,
                        )
                    )
                    patches += 1
                if not part.bare:
                    tube = names.setdefault((height, width, "line", r), len(names) + tubes)
                    tokens.append(dict(kind=Kind.LINE, frame=frames, row=rows + r, tube=tube))
            frames, rows = frames + 1, rows + height
        tubes += len(names)
    for position, token in enumerate(tokens):
        following = tokens[position + 1] if position + 1 < len(tokens) else {}
        learned = following.get("weight", 0) > 0
        token.update(position=position, segment=1, target=following["token_id"] if learned else 0)
        token.update(loss_weight=following["weight"] if learned else 0)
    return tokens


def same_partition(a, b) -> bool:
    """Whether two lists of labels partition their indices in the same way."""
    return len(set(zip(a, b, strict=True))) == len(set(a)) == len(set(b))


@given(examples())
def test_layout_equals_the_direct_implementation(parts):
    layout = build_layout(parts)
    expected = plain(parts)
    assert layout.length == len(expected)
    for name in (
        "kind",
        "token_id",
        "patch_index",
        "frame",
        "row",
        "position",
        "segment",
        "target",
        "loss_weight",
    ):
        default = 0 if name == "token_id" else -1
        assert getattr(layout, name).tolist() == [token.get(name, default) for token in expected], (
            name
        )
    assert layout.cell.tolist() == [list(token.get("cell", (-1,) * 4)) for token in expected]
    assert same_partition(layout.tube.tolist(), [token.get("tube", -1) for token in expected])
    for name, array in layout._asdict().items():
        assert array.dtype == (np.float32 if name == "loss_weight" else np.int32), name


@given(st.integers(1, 60), st.integers(1, 60))
def test_tokens_of_a_frame(rows, columns):
    assert frame_tokens(rows, columns) == rows * columns + rows + 1
    layout = build_layout([Clip([(rows, columns)])])
    assert layout.length == frame_tokens(rows, columns)
    assert [int((layout.kind == kind).sum()) for kind in (Kind.FRAME, Kind.PATCH, Kind.LINE)] == [
        1,
        rows * columns,
        rows,
    ]
    clip = Clip([(rows, columns)] * 2, bare=True)
    assert build_layout([clip]).length == clip_tokens(clip) == 2 * rows * columns


@pytest.mark.parametrize(
    ("high", "low", "tokens"),
    [(8, 16, 5976), (8, 32, 7144), (16, 0, 9616), (16, 8, 10200), (16, 16, 10784), (32, 0, 19232)],
)
def test_table_6(high, low, tokens):
    layout = build_layout([Clip([(24, 24)] * high + [(8, 8)] * low)])
    assert layout.length == tokens
    assert count(layout).frames == high + low
    assert count(layout).patches == high * 24 * 24 + low * 8 * 8


@pytest.mark.parametrize(
    ("pixels", "tokens"), [(112, 21), (224, 73), (336, 157), (448, 273), (672, 601), (1344, 2353)]
)
def test_square_frames_of_the_paper(pixels, tokens):
    assert frame_tokens(pixels // 28, pixels // 28) == tokens


def test_tubes_link_equal_grids_of_one_clip_only():
    layout = build_layout([Clip([(2, 2), (1, 2), (2, 2)]), Clip([(2, 2)])])
    members = defaultdict(list)
    for index in np.flatnonzero(layout.kind == Kind.PATCH):
        members[int(layout.tube[index])].append(
            (int(layout.frame[index]), *layout.cell[index].tolist())
        )
    groups = sorted(members.values())
    assert [[frame for frame, *_ in group] for group in groups] == [[0, 2]] * 4 + [[1]] * 2 + [
        [3]
    ] * 4
    assert all(len({tuple(cell) for _, *cell in group}) == 1 for group in groups)


def tubes_keep_to_themselves(layout: TokenLayout) -> None:
    """A tube has one kind, one segment, at most one token per frame, and its frames in order."""
    for tube in set(layout.tube[layout.tube >= 0].tolist()):
        index = np.flatnonzero(layout.tube == tube)
        assert (
            len(
                {
                    (int(k), int(s))
                    for k, s in zip(layout.kind[index], layout.segment[index], strict=True)
                }
            )
            == 1
        )
        assert (np.diff(layout.frame[index]) > 0).all()
        assert len(np.unique(layout.cell[index], axis=0)) == 1


@given(st.lists(examples(), min_size=1, max_size=4), st.integers(0, 9))
def test_packing(many, padding):
    layouts = [build_layout(parts) for parts in many]
    total = sum(layout.length for layout in layouts)
    packed = pack(layouts, total + padding)
    assert packed.length == total + padding
    tubes_keep_to_themselves(packed)
    start = 0
    seen = defaultdict(set)
    for segment, layout in enumerate(layouts, 1):
        piece = TokenLayout(*(array[start : start + layout.length] for array in packed))
        start += layout.length
        assert (piece.segment == segment).all()
        for name in ("kind", "token_id", "cell", "position", "target", "loss_weight"):
            np.testing.assert_array_equal(getattr(piece, name), getattr(layout, name))
        for name in ("patch_index", "frame", "row", "tube"):
            mine = getattr(piece, name).tolist()
            assert same_partition(mine, getattr(layout, name).tolist())
            assert [a >= 0 for a in mine] == [a >= 0 for a in getattr(layout, name)]
            assert not seen[name] & (set(mine) - {-1})  # unique within the packed sequence
            seen[name] |= set(mine) - {-1}
    # Patches are concatenated in order, so their numbers increase without a gap.
    index = packed.patch_index[packed.kind == Kind.PATCH]
    np.testing.assert_array_equal(index, np.arange(len(index)))
    tail = TokenLayout(*(array[start:] for array in packed))
    assert (tail.kind == Kind.PAD).all()
    assert not tail.segment.any()
    assert not tail.loss_weight.any()
    assert all(
        (getattr(tail, name) == -1).all()
        for name in ("patch_index", "frame", "row", "tube", "cell")
    )


@given(examples(), st.booleans())
def test_counts(parts, merge_lines):
    layout = pack([build_layout(parts)], 500)
    expected = plain(parts)
    merging = {Kind.PATCH, Kind.LINE} if merge_lines else {Kind.PATCH}
    tubes = {token["tube"] for token in expected if token["kind"] in merging}
    still = sum(token["kind"] not in merging for token in expected)
    counts = count(layout, merge_lines=merge_lines)
    assert counts.tokens == len(expected)
    assert counts.patches == sum(token["kind"] == Kind.PATCH for token in expected)
    assert counts.frames == sum(len(part.grids) for part in parts if isinstance(part, Clip))
    assert counts.merged_tokens == still + len(tubes)


def test_every_answer_token_is_learned_once_from_the_token_before_it():
    layout = build_layout(
        [Clip([(1, 1)]), Text([5, 6]), Text([7, 8], weight=1.0), Text([9]), Text([10], weight=0.5)]
    )
    assert layout.target.tolist() == [0, 0, 0, 0, 7, 8, 0, 10, 0]
    assert layout.loss_weight.tolist() == [0, 0, 0, 0, 1, 1, 0, 0.5, 0]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "at least one"),
        ([Text([])], "at least one"),
        ([Clip([(2, 0)])], "2 x 0"),
        ([Clip([(-1, 2)])], "-1 x 2"),
        ([Text([1], weight=1.0)], "must follow a text token"),
        ([Clip([(1, 1)]), Text([1], weight=1.0)], "must follow a text token"),
        ([Text([1]), Clip([(1, 1)]), Text([2], weight=1.0)], "must follow a text token"),
    ],
)
def test_invalid_examples_are_refused(parts, message):
    with pytest.raises(LayoutError, match=message):
        build_layout(parts)


def test_packing_refuses_too_many_tokens():
    with pytest.raises(LayoutError, match="6 tokens do not fit a sequence of 5"):
        pack([build_layout([Text([1, 2, 3])])] * 2, 5)
    assert pack([], 3).kind.tolist() == [0, 0, 0]


def test_positions_of_turns_continue_the_shared_part():
    parts = [
        Text([1, 2]),
        Clip([(1, 2)]),
        Text([3, 4], turn=1),
        Text([5], weight=1.0, turn=1),
        Text([6], turn=2),
        Text([7, 8], weight=1.0, turn=2),
    ]
    layout = build_layout(parts)
    assert layout.turn.tolist() == [0] * 6 + [1] * 3 + [2] * 3
    assert layout.position.tolist() == [*range(6), 6, 7, 8, 6, 7, 8]
    assert layout.target.tolist() == [0] * 7 + [5, 0, 7, 8, 0]
    for wrong in (
        [Text([1], turn=1), Text([2])],
        [Text([1], turn=2), Text([2], turn=1)],
        [Text([1]), Text([2], weight=1.0, turn=1)],
    ):
        with pytest.raises(LayoutError):
            build_layout(wrong)


def test_padding_equals_that_of_pack():
    padding, packed = TokenLayout.padding(2, 3), pack([], 3)
    fields = zip(padding, packed, TokenLayout.shapes(2, 3), TokenLayout.dtypes(), strict=True)
    for field, added, shape, dtype in fields:
        assert (field.shape, field.dtype) == (shape, dtype)
        assert added.dtype == dtype
        np.testing.assert_array_equal(field, np.stack([added, added]))


def test_video_does_not_import_jax():
    code = "import sys, elva_jax.video.layout, elva_jax.video.clip; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
