"""Tests of the text that is streamed while an answer grows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elva_jax.inference.detokenize import tokens_before, visible


class Letters:
    """A tokenizer of UTF-8 bytes, so that a token may be a part of a character."""

    def decode(self, tokens, skip_special_tokens):
        return bytes(tokens).decode(errors="replace")


LETTERS = Letters()


@pytest.mark.parametrize(
    ("text", "stop", "final", "expected"),
    [
        (" red ", (), True, ("red", False)),
        ("red ", (), False, ("red", False)),
        ("red. Blue", (".",), True, ("red", True)),
        ("red\nUs", ("\nUser:",), False, ("red", False)),
        ("red\nUs", ("\nUser:",), True, ("red\nUs", False)),
        ("aab", ("b", "ab"), True, ("a", True)),
        ("abab", ("abc",), False, ("ab", False)),
    ],
)
def test_stop_strings_and_their_prefixes_are_withheld(text, stop, final, expected):
    assert visible(LETTERS, text.encode(), stop, final=final) == expected


def test_incomplete_character_is_withheld():
    tokens = "né".encode()
    assert visible(LETTERS, tokens[:2], final=False) == ("n", False)
    assert visible(LETTERS, tokens, final=False) == ("né", False)


@given(
    st.text(alphabet="ab \né", max_size=20),
    st.lists(st.text(alphabet="ab ", min_size=1, max_size=3), max_size=2),
)
def test_streamed_text_never_changes(text, stop):
    """Every streamed text is a prefix of the whole answer."""
    tokens = text.encode()
    shown = ""
    for n in range(1, len(tokens) + 1):
        now, stopped = visible(LETTERS, tokens[:n], stop, final=n == len(tokens))
        assert now.startswith(shown)
        shown = now
        if stopped:
            break
    assert shown == visible(LETTERS, tokens, stop)[0]


def test_tokens_end_with_the_one_that_completes_a_stop_string():
    assert tokens_before(LETTERS, b"red. Blue. Green", (". ", "Green")) == len("red. ")
    assert tokens_before(LETTERS, b"red", (".",)) == 3
