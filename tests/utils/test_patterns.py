"""Patterns of users: as the standard library, within a time limit."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elva_jax.errors import ConfigError
from elva_jax.utils import patterns
from elva_jax.utils.patterns import Matcher

PATHS = (
    "elva/decoder/layers/self_attn/q_proj/kernel",
    "elva/decoder/layers/mlp/down_proj_lora/a",
    "elva/decoder/embed_tokens/embedding",
    "teacher/vision/blocks_10/attn/bias",
)
PIECES = st.sampled_from(
    [
        *("q", "_proj", "proj", "layers", "/", ".", r"\.", r"\d", r"\w", r"\b", "^", "$", "[a-d]"),
        *("[^/]", "[/_]", "[[]", "[]]", "[:]", "[[:alpha:]]", "[a-z&&b]", "{2}", "{1,2}", "{e}"),
        *("{", "}", "{,2}", "{e<=1}", r"\{e}", "*", "+", "?", "*+", "|", "(", ")", "(?:", "(?i)"),
        *("(?=", "(?!", "(?<=", "(?<!", "(?>", r"\1", r"\Z", r"\A", r"\p{L}", r"\X", r"\L<a>", "é"),
        *(
            "(?P<a>",
            "(?P=a)",
            "(?R)",
            "(?|",
            "(?(1)",
            "(?b)",
            "(?e)",
            "(?s:",
            "(?-i:",
            r"\h",
            r"\K",
        ),
    ]
)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@given(st.lists(PIECES, max_size=7).map("".join))
def test_a_pattern_finds_what_the_standard_library_finds(pattern):
    try:
        expected = [re.search(pattern, path) is not None for path in PATHS]
    except (re.error, RecursionError):
        expected = None
    matcher = Matcher("freeze", ConfigError)
    try:
        found = [matcher.search(pattern, path) is not None for path in PATHS]
    except ConfigError as error:
        found = str(error)
    if isinstance(found, str):
        assert found.startswith("freeze: ")
        assert expected is None or "write a backslash before" in found
    else:
        assert found == expected


@pytest.mark.parametrize("pattern", [r"(.|..|...)+(?=!)", r"((?:.|..)+)+(?=\1!)"])
def test_a_pattern_without_end_is_refused(pattern, monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.2)
    matcher = Matcher("optimizer.freeze", ConfigError)
    with pytest.raises(ConfigError, match=r"optimizer\.freeze: .* takes too long to match"):
        matcher.search(pattern, PATHS[0] * 3)
