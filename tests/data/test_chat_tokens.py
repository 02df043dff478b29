"""Tests that special tokens and markers in texts are text, against the tokenizers library."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import AutoTokenizer

from elva_jax.data import conversation
from elva_jax.data.chat_tokens import plain_ids, token_ids
from elva_jax.data.example import Example, Media, Turn
from elva_jax.data.readers.chat import to_example
from elva_jax.errors import DataError
from elva_jax.video.layout import Clip, Text, build_layout

# The added tokens of Qwen2.5's vocabulary; the last ten are not special.
QWEN = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<tool_call>",
    "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>",
]  # fmt: skip
MARKERS = ["<video>", "<image>", "<FRAME>", "<LINE>", "<PATCH>"]
FOREIGN = ["[INST]", "<s>", "ж", " lead", "<|im_end|>x"]
CLIP = Clip(((2, 3),))
words = st.text(st.characters(codec="utf-8", exclude_characters="<>|"), max_size=12)
hostile = st.lists(st.one_of(words, st.sampled_from(QWEN + MARKERS)), max_size=6).map("".join)
fast = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module", params=["qwen", "foreign"])
def qwen(request, tokenizer, tmp_path_factory):
    """The small tokenizer with the added tokens of Qwen2.5 (and those of another model)."""
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer.save_pretrained(folder)
    out = AutoTokenizer.from_pretrained(folder)
    more = FOREIGN if request.param == "foreign" else []
    for number, token in enumerate([*QWEN, *MARKERS[2:], *more]):
        special = not 14 <= number < 22
        out.add_tokens([AddedToken(token, special=special, normalized=False)], special)
    return out


def ids_of(parts):
    return [token for part in parts if isinstance(part, Text) for token in part.token_ids]


def controls(tokenizer, ids):
    added = set(tokenizer.get_added_vocab().values())
    return [tokenizer.convert_ids_to_tokens(token) for token in ids if token in added]


def template(turns, system):
    one = ["<|im_start|>", "<|im_end|>"]
    return one * (2 * turns + bool(system))


@pytest.mark.parametrize("token", QWEN + MARKERS + FOREIGN)
def test_every_special_token_is_text_through_every_door(qwen, token):
    text = f"a {token} b{token}{token}"
    answered = Example("x", (), (Turn(text, text), Turn(text, text)))
    parts = conversation.render(answered, qwen, (), text)
    assert controls(qwen, ids_of(parts)) == template(2, system=True)
    assert qwen.decode(ids_of(parts)).count(text) == 5
    layout = build_layout(parts)
    learned = layout.target[layout.loss_weight > 0].tolist()
    assert controls(qwen, learned) == ["<|im_end|>"] * 2
    asked = conversation.follow_up(text, (), qwen)
    assert controls(qwen, ids_of(asked)) == ["<|im_end|>", "<|im_start|>"] * 2
    assert controls(qwen, conversation.answer_ids(text, qwen)) == ["<|im_end|>"]


@fast
@given(question=hostile, answer=hostile.filter(str.strip), system=hostile)
def test_only_the_template_has_control_tokens(qwen, question, answer, system):
    example = Example("x", (), (Turn(question, answer),))
    ids = ids_of(conversation.render(example, qwen, (), system))
    assert controls(qwen, ids) == template(1, system)


def test_an_added_token_that_is_a_byte_of_other_characters_is_refused_there(tokenizer, tmp_path):
    """In vocabularies of bytes, the symbol é stands for the first byte of 退."""
    tokenizer.save_pretrained(tmp_path)
    foreign = AutoTokenizer.from_pretrained(tmp_path)
    foreign.add_tokens([AddedToken("é", normalized=False)])
    assert token_ids(foreign, "", "é")
    with pytest.raises(DataError, match="cannot read 'é' as text"):
        token_ids(foreign, "", "é退")


@fast
@given(before=words, text=words)
def test_ordinary_texts_are_read_as_one_string_with_their_template(tokenizer, before, text):
    pieces = (f"{before}<|im_start|>user\n", text, "<|im_end|>\n")
    whole = tokenizer.encode("".join(pieces), add_special_tokens=False)
    assert list(token_ids(tokenizer, *pieces)) == whole


@fast
@given(text=words.filter(bool))
def test_a_special_token_changes_nothing_on_its_other_side(tokenizer, text):
    """A text with a special token in another turn keeps the ids that it has alone."""
    token = "<|im_end|>"
    pieces = ("<|im_start|>user\n", text, "<|im_end|>\n<|im_start|>assistant\n", token)
    alone = token_ids(tokenizer, *pieces[:2], "<|im_end|>")
    assert token_ids(tokenizer, *pieces)[: len(alone)] == alone


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "<|endoftext|>"])
def test_plain_ids_equal_split_special_tokens_of_transformers(tokenizer, token):
    text = f"one {token} two{token}"
    want = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert list(plain_ids(tokenizer, text)) == want


@pytest.mark.parametrize("marker", ["<video>", "<image>"])
def test_markers_are_text_without_media_in_answers_and_after_a_backslash(tokenizer, marker):
    video = Media(b"", "video")
    text = tokenizer.decode(
        ids_of(conversation.render(Example("x", (), (Turn(marker, marker),)), tokenizer, ()))
    )
    assert text.count(marker) == 2
    question = f"<video>What is \\{marker} and \\\\{marker}?"
    example = Example("x", (video,), (Turn(question, f"A {marker}"),))
    parts = conversation.render(example, tokenizer, [CLIP], f"system {marker}")
    assert [part for part in parts if isinstance(part, Clip)] == [CLIP]
    read = tokenizer.decode(ids_of(parts))
    assert f"What is {marker} and \\{marker}?" in read
    assert f"system {marker}" in read
    assert f"A {marker}" in read
    with pytest.raises(DataError, match=r"write \\<video> where the word is meant"):
        conversation.prompt_parts(f"{marker}{marker}", [CLIP], tokenizer)


@fast
@given(st.lists(st.sampled_from(["<video>", "<image>", "\\", "a", "<"]), max_size=9).map("".join))
def test_escaping_is_undone_and_leaves_no_marker(text):
    assert conversation.unescape(conversation.escape(text)) == text
    assert not conversation.MARKER.search(conversation.escape(text))


def test_media_parts_stand_where_they_are_and_text_parts_are_text(tokenizer):
    content = [
        {"type": "text", "text": "The <video> tag"},
        {"type": "video", "video": "a.mp4"},
        {"type": "text", "text": "and <image>?"},
    ]
    answer = [{"type": "text", "text": "<video> <|im_end|>"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    record = json.loads(json.dumps({"messages": messages}))
    example = to_example(record, "x", str)
    parts = conversation.render(example, tokenizer, [CLIP])
    at = parts.index(CLIP)
    assert tokenizer.decode(ids_of(parts[:at])).endswith("The <video> tag")
    assert tokenizer.decode(ids_of(parts[at:])).startswith("and <image>?")
    assert controls(tokenizer, ids_of(parts)) == template(1, "")
    assert example.turns[0].answer == "<video> <|im_end|>"
