"""Tests of rendered conversations against the tokenizer's chat template."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elva_jax.data import chat_template, conversation
from elva_jax.data.example import Example, Media, Turn
from elva_jax.errors import DataError
from elva_jax.video.layout import Clip, Text, build_layout

VIDEO = Media(b"", "video")
CLIP = Clip(((2, 3), (2, 3)))
words = st.text(st.characters(codec="utf-8", exclude_characters="<>|"), max_size=30)
turns = st.lists(st.tuples(words, words.filter(str.strip)), min_size=1, max_size=4)
fast = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def messages(pairs, system):
    out = [{"role": "system", "content": system}] if system else []
    for question, answer in pairs:
        out += [
            {"role": "user", "content": question.strip()},
            {"role": "assistant", "content": answer.strip()},
        ]
    return out


def text_of(parts):
    return [token for part in parts if isinstance(part, Text) for token in part.token_ids]


def template(tokenizer, chat, **options):
    return tokenizer.encode(
        tokenizer.apply_chat_template(chat, tokenize=False, **options), add_special_tokens=False
    )


@fast
@given(pairs=turns, system=st.sampled_from(["", "Be brief."]), media=st.integers(0, 2))
def test_text_equals_the_chat_template_token_for_token(tokenizer, pairs, system, media):
    example = Example("x", (VIDEO,) * media, tuple(Turn(q, a) for q, a in pairs))
    parts = conversation.render(example, tokenizer, [CLIP] * media, system)
    assert text_of(parts) == template(tokenizer, messages(pairs, system))
    assert [part for part in parts if isinstance(part, Clip)] == [CLIP] * media


def test_media_replace_their_markers(tokenizer):
    """In the template a special token replaces each marker; it splits the text like a medium."""
    pairs = [("Compare <image>with<video> please.", "Alike."), ("And <image>", "Not.")]
    example = Example("x", (VIDEO,) * 3, tuple(Turn(q, a) for q, a in pairs))
    clips = [Clip(((1, 1),)), Clip(((1, 2),)), Clip(((1, 3),), bare=True)]
    parts = conversation.render(example, tokenizer, clips, "")
    marked = [
        ("Compare<|endoftext|>with<|endoftext|>please.", "Alike."),
        ("And<|endoftext|>", "Not."),
    ]
    stop = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    ours, seen = [], []
    for part in parts:
        ours += [stop] if isinstance(part, Clip) else list(part.token_ids)
        seen += [part] if isinstance(part, Clip) else []
    assert ours == template(tokenizer, messages(marked, ""))
    assert seen == clips


def test_leading_marker_equals_no_marker(tokenizer):
    with_marker, without = (
        conversation.render(
            Example("x", (VIDEO,), (Turn(question, "A dog."),)), tokenizer, [CLIP], "s"
        )
        for question in ("<video>\nWhat is it?", "What is it?")
    )
    assert with_marker == without


def test_loss_covers_only_answers_and_their_end_token(tokenizer):
    pairs = [("What is it?", "A red circle."), ("Where?", " top left\n"), ("How many?", "3")]
    example = Example("x", (VIDEO,), tuple(Turn(q, a) for q, a in pairs))
    layout = build_layout(conversation.render(example, tokenizer, [CLIP], "Be brief."))
    learned = layout.loss_weight > 0
    assert set(layout.loss_weight) == {0.0, 1.0}
    assert (
        tokenizer.decode(layout.target[learned])
        == "A red circle.<|im_end|>top left<|im_end|>3<|im_end|>"
    )
    predicted_from = tokenizer.decode(layout.token_id[learned])
    # Each token is predicted from the one before it, the first from the newline of the header.
    assert predicted_from == "\nA red circle.\ntop left\n3"


@fast
@given(question=words, system=st.sampled_from(["", "Be brief."]))
def test_prompt_equals_the_template_with_a_generation_prompt(tokenizer, question, system):
    parts = conversation.prompt_parts(question, [CLIP], tokenizer, system)
    chat = messages([(question, "-")], system)[:-1]
    assert text_of(parts) == template(tokenizer, chat, add_generation_prompt=True)
    full = conversation.render(
        Example("x", (VIDEO,), (Turn(question, "Yes."),)), tokenizer, [CLIP], system
    )
    assert full[: len(parts)] == parts
    assert all(part.weight == 0 for part in parts if isinstance(part, Text))


def test_choice_prompt_lists_the_options():
    assert (
        conversation.choice_prompt("Which?", ["red", "blue"])
        == "Which?\nA. red\nB. blue\nAnswer with the letter."
    )


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ((), "clip7: the conversation is empty"),
        ((Turn("What?", "  \n"),), "clip7: a question has no answer"),
        ((Turn("<image> and <image>?", "no"),), "clip7: 2 <image> or <video> markers for 1 media"),
    ],
)
def test_invalid_conversations_are_refused(tokenizer, turns, message):
    with pytest.raises(DataError, match=message):
        conversation.render(Example("clip7", (VIDEO,), turns), tokenizer, [CLIP])


def test_truncation_drops_the_media_of_dropped_turns():
    example = Example("x", (VIDEO,) * 3, (Turn("<image> a", "1"), Turn("<image> b <image>", "2")))
    assert len(conversation.truncate(example, 1).media) == 1
    unmarked = Example("x", (VIDEO,) * 3, (Turn("a", "1"), Turn("b", "2")))
    assert len(conversation.truncate(unmarked, 1).media) == 3


@pytest.mark.parametrize("question", ["Why?", "<video> Why? <image>"])
def test_turn_tokens_counts_the_tokens_that_a_turn_adds(tokenizer, question):
    first, second = Turn("<image> Who?", "A cat."), Turn(question, "It fell.")
    media = 1 + len(conversation.MARKER.findall(question))
    one = conversation.render(Example("x", (VIDEO,), (first,)), tokenizer, [CLIP])
    two = conversation.render(
        Example("x", (VIDEO,) * media, (first, second)), tokenizer, [CLIP] * media
    )
    assert len(text_of(two)) - len(text_of(one)) == conversation.turn_tokens(second, tokenizer)


def test_tokenizer_with_another_template_is_refused(tokenizer):
    conversation.check_tokenizer(tokenizer)
    before = tokenizer.chat_template
    try:
        tokenizer.chat_template = (
            "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        )
        with pytest.raises(DataError, match="not ChatML"):
            conversation.check_tokenizer(tokenizer)
        tokenizer.chat_template = None
        with pytest.raises(DataError, match="chat template"):
            conversation.check_tokenizer(tokenizer)
    finally:
        tokenizer.chat_template = before


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "1 s"),
        ("{{ 'a' * 10**10 }}", "MiB"),
        ("{{ '%1000000000d' % 1 }}", "MiB"),
        ("{{ 'a' * 10**7 }}", "characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ raise_exception('no\nway') }}", "no$"),
        ("{% bad", "unknown tag"),
        ("{{ messages.foo.bar }}", "no attribute"),
    ],
)
def test_a_template_is_limited_and_its_error_is_one_line(tokenizer, template, problem, monkeypatch):
    monkeypatch.setattr(chat_template, "TIME_LIMIT", 1)
    before = tokenizer.chat_template
    tokenizer.chat_template = template
    try:
        with pytest.raises(DataError, match=problem) as caught:
            conversation.check_tokenizer(tokenizer)
        assert str(caught.value).startswith(f"tokenizer {tokenizer.name_or_path}: its chat")
        assert "\n" not in str(caught.value)
    finally:
        tokenizer.chat_template = before


def test_another_spelling_of_chatml_is_accepted(tokenizer):
    before = tokenizer.chat_template
    tokenizer.chat_template = "{# a comment #}" + before
    try:
        conversation.check_tokenizer(tokenizer)
    finally:
        tokenizer.chat_template = before


@fast
@given(pairs=turns, system=st.sampled_from(["", "Be brief."]))
def test_each_independent_turn_equals_the_template_of_one_turn(tokenizer, pairs, system):
    example = Example("x", (VIDEO,), tuple(Turn(q, a) for q, a in pairs), independent=True)
    parts = conversation.render(example, tokenizer, [CLIP], system)
    shared = [part for part in parts if isinstance(part, Clip) or part.turn == 0]
    assert [part for part in shared if isinstance(part, Clip)] == [CLIP]
    for number, pair in enumerate(pairs, start=1):
        own = [part for part in parts if isinstance(part, Text) and part.turn == number]
        # The template adds it after a turn; a turn that ends the sequence lacks it.
        newline = template(tokenizer, messages([pair], system))[-1:]
        assert text_of([*shared, *own]) + newline == template(tokenizer, messages([pair], system))
        assert (
            tokenizer.decode(text_of([part for part in own if part.weight]))
            == pair[1].strip() + "<|im_end|>"
        )
