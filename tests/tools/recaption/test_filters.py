"""Tests of which answers are accepted as captions."""

import pytest

from elva_jax.tools.recaption.filters import reason
from elva_jax.utils.chat_client import Reply

GOOD = (
    "A man in a red coat stands on a bridge, cannot reach the rail, and holds a very, very "
    'old map. Behind him a sign reads "SORRY, WE\'RE CLOSED". We see two boats, then two more '
    "boats, and a grey, grey sky."
)
LINE = "The woman in the blue dress walks to the left. "


@pytest.mark.parametrize(
    ("text", "finish", "expected"),
    [
        (GOOD, "stop", None),
        (GOOD, "length", "truncated"),
        (GOOD, "content_filter", "refusal"),
        ("", "stop", "empty"),
        ("A cat.", "stop", "empty"),
        (
            "I'm sorry, but I can't help with identifying people in this picture, nor with "
            "describing them.",
            "stop",
            "refusal",
        ),
        (
            "I’m sorry, but I can’t assist with that request, as it shows a real person.",
            "stop",
            "refusal",
        ),
        (
            "Sorry, this picture is not something that can be described by me in detail.",
            "stop",
            "refusal",
        ),
        (
            "I am unable to view videos, but here is how one might describe such a scene.",
            "stop",
            "refusal",
        ),
        (
            "As an AI language model, I have no eyes with which to look at the picture.",
            "stop",
            "refusal",
        ),
        (
            "Describing this would go against our content policy, so here is a poem instead of it.",
            "stop",
            "refusal",
        ),
        (
            "There was no image provided, so please attach one and then ask the question again.",
            "stop",
            "refusal",
        ),
        (
            GOOD + " and red and blue and red and blue and red and blue and red and blue",
            "stop",
            "repetition",
        ),
        (GOOD + " the the the the the", "length", "repetition"),
        (LINE + GOOD + " " + LINE + "A dog barks. " + LINE, "stop", "repetition"),
        (LINE + GOOD + " " + LINE, "stop", None),
        (
            GOOD + " " + "one two three four five six seven eight nine ten eleven twelve " * 4,
            "stop",
            "repetition",
        ),
        (
            GOOD + " " + "one two three four five six seven eight nine ten eleven twelve " * 3,
            "stop",
            None,
        ),
    ],
)
def test_rejection_reason(text, finish, expected):
    assert reason(Reply(text=text, finish=finish, prompt_tokens=0, new_tokens=0)) == expected
