"""The rule of exact match: cases, and properties that hold for any text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elva_jax.evaluation.answers import exact_match, normalize, option_index


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The Red circle. ", "red circle"),
        ("A red, circle!", "red circle"),
        ("A", "a"),
        ("(a)", "a"),
        ("top-left", "top left"),
        ("1.5", "1.5"),
        ("5.", "5"),
        ("at 10:30.", "at 10:30"),
        ("-2", "-2"),
        ("It's an owl", "its owl"),
        ("２ objects", "2 objects"),
        ("Straße", "strasse"),
        ("...", ""),
    ],
)
def test_normalize(text, expected):
    assert normalize(text) == expected


@given(st.text(max_size=30))
def test_normalize_is_idempotent(text):
    once = normalize(text)
    assert normalize(once) == once


@given(st.lists(st.sampled_from(["red", "circle", "seven", "left", "7"]), min_size=1, max_size=4))
def test_writing_habits_do_not_matter(words):
    plain = " ".join(words)
    assert exact_match("The " + plain.upper() + ".", plain)
    assert exact_match(plain, "a " + plain.title() + " ")


def test_exact_match_refuses_parts_and_nothing():
    assert not exact_match("red", "red circle")
    assert not exact_match("", "")
    assert not exact_match("?!", "?!")
    assert not exact_match("1.5", "15")
    assert not exact_match("12", "1, 2")


def test_option_index_needs_one_match():
    options = ["red", "Blue.", "green", "the blue"]
    assert option_index("Red.", options) == 0
    assert option_index("green", options) == 2
    assert option_index("blue", options) is None
    assert option_index("yellow", options) is None
    assert option_index("", ["", "x"]) is None


def test_option_index_knows_the_letters_before_the_options():
    options = ["red", "green", "A. Einstein"]
    assert [option_index(text, options) for text in ("A. red", "B. green")] == [0, 1]
    assert [option_index(text, options) for text in ("(b) green", "B: Green.")] == [1, 1]
    assert [option_index(text, options) for text in ("A. green", "B. red")] == [None, None]
    assert option_index("A. Einstein", options) == 2
    assert option_index("+", ["-", "+"]) == 1
