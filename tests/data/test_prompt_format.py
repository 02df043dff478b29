"""Tests of LLaMA-2's format against a plain statement of the rule, in training and inference."""

import itertools
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from elva_jax.config import schema
from elva_jax.config.serialize import freeze
from elva_jax.data import conversation
from elva_jax.data.example import Example, Media, Turn
from elva_jax.data.prompt_format import FORMATS, load_tokenizer
from elva_jax.errors import ConfigError, DataError, LayoutError
from elva_jax.inference.batches.dialogue import dialogue_parts
from elva_jax.inference.batching import split_prompt
from elva_jax.inference.prompts import PromptReader
from elva_jax.video.clip import Visual
from elva_jax.video.layout import Clip, Kind, Text, build_layout

LLAMA = FORMATS["llama2_base"]
VIDEO = Media(b"", "video")
CLIP = Clip(((2, 2), (2, 2)), bare=True)
words = st.text(st.characters(codec="utf-8", exclude_characters="<>|"), max_size=30)
turns = st.lists(st.tuples(words, words.filter(str.strip)), min_size=1, max_size=4)
fast = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def llama():
    """A BPE whose pieces begin with a space, with bytes, `<s>` and `</s>`, as LLaMA-2's."""
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    inner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=specials, show_progress=False)
    inner.train_from_iterator(["In: What moves?\nOut: A red circle.", "abc def ghi"] * 5, trainer)
    # Bytes are entries of LLaMA's vocabulary, and no special tokens.
    state = json.loads(inner.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < 3]
    state["decoder"] = json.loads(
        decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        ).__getstate__()
    )
    inner = Tokenizer.from_str(json.dumps(state))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def reader(tokenizer, **data):
    """Reads prompts as a stage of `data` does."""
    config = schema.base()
    config.stages.sft = schema.stage()
    config.stages.sft.data.update(prompt_format="llama2_base", system_prompt="", **data)
    config.curriculum = ("sft",)
    return PromptReader(config, tokenizer)


def stated(tokenizer, pairs):
    """The rule: token ids, and whether each is learned. Every piece is stripped on the right."""
    ids, learned = [tokenizer.bos_token_id], [False]
    for question, answer in pairs:
        asked = f"In: {question}\nOut: ".rstrip()
        said = f"{answer}</s>".rstrip()
        for piece, is_answer in ((asked, False), (said, True)):
            new = tokenizer.encode(piece, add_special_tokens=False)
            ids += new
            learned += [is_answer] * len(new)
    return ids, learned


@fast
@given(pairs=turns, media=st.integers(0, 2))
def test_training_equals_the_rule_token_for_token(llama, pairs, media):
    pairs = [(question.strip(), answer.strip()) for question, answer in pairs]
    example = Example("x", (VIDEO,) * media, tuple(Turn(q, a) for q, a in pairs))
    parts = conversation.render(example, llama, [CLIP] * media, "", LLAMA)
    ids, learned = stated(llama, pairs)
    tokens = [
        (token, part.weight == 1)
        for part in parts
        if isinstance(part, Text)
        for token in part.token_ids
    ]
    assert tokens == list(zip(ids, learned, strict=True))
    # The media stand right after the first token.
    assert parts[0] == Text((llama.bos_token_id,))
    assert parts[1 : 1 + media] == [CLIP] * media
    assert not any(isinstance(part, Clip) for part in parts[1 + media :])


@fast
@given(pairs=turns)
def test_inference_chat_and_evaluation_read_what_training_does(llama, pairs):
    pairs = [(question.strip() or "?", answer.strip()) for question, answer in pairs]
    model, visual = reader(llama), Visual(patches=None, clip=CLIP)
    ids, _ = stated(llama, pairs)
    first = model.prompt_parts(pairs[0][0], [visual])
    chat = first
    for (_, answer), (question, _) in itertools.pairwise(pairs):
        said = model.answer_ids(answer)
        assert said[-1:] == (llama.eos_token_id,)
        follow = conversation.follow_up(conversation.escape(question), [], llama, model.form)
        chat = [*chat, Text(said[:-1]), *follow]
    asked = tuple((conversation.escape(q), a) for q, a in pairs)
    asked = (("<video>\n" + asked[0][0], asked[0][1]), *asked[1:])
    dialogue = dialogue_parts(model, asked, [visual])
    last = len(model.answer_ids(pairs[-1][1]))
    for parts in (chat, dialogue):
        text = [t for part in parts if isinstance(part, Text) for t in part.token_ids]
        assert text == ids[:-last]
        assert [k for k, part in enumerate(parts) if isinstance(part, Clip)] == [1]
    prompt = split_prompt(first)
    assert prompt.prefix == (Text((llama.bos_token_id,)), CLIP)
    assert model.form.end_ids(llama) == {llama.eos_token_id}


def test_media_stand_before_the_question_about_them(llama):
    pairs = [("What is in <video> here?", "A dog."), ("And in <image>?", "A cat.")]
    example = Example("x", (VIDEO, VIDEO), tuple(Turn(q, a) for q, a in pairs))
    second = Clip(((1, 1),), bare=True)
    parts = conversation.render(example, llama, [CLIP, second], "Be brief.", LLAMA)
    read = [p if isinstance(p, Clip) else llama.decode(p.token_ids).lstrip() for p in parts]
    told = ["In: Be brief.\nWhat is in here?\nOut:", "A dog.</s>", "In: And in ?\nOut:"]
    assert read == ["<s>", CLIP, *told[:2], second, told[2], "A cat.</s>"]


def test_independent_questions_share_the_media(llama):
    pairs = [("What is it?", "A dog."), ("Where?", "Left.")]
    example = Example("x", (VIDEO,), tuple(Turn(q, a) for q, a in pairs), independent=True)
    shared, clip, *branches = conversation.render(example, llama, [CLIP], "", LLAMA)
    assert (shared, clip) == (Text((llama.bos_token_id,)), CLIP)
    for number, pair in enumerate(pairs, start=1):
        question, answer = branches[2 * number - 2 : 2 * number]
        assert question.turn == answer.turn == number
        assert [*shared.token_ids, *question.token_ids, *answer.token_ids] == stated(llama, [pair])[
            0
        ]


@pytest.mark.parametrize("form", FORMATS)
def test_captions_are_learned_from_their_first_token(llama, tokenizer, form):
    reads = llama if form == "llama2_base" else tokenizer
    example = Example("x", (VIDEO,), (Turn("Describe it.", " A red dog.\n"),))
    parts = conversation.render_caption(example, reads, [CLIP], FORMATS[form])
    begin = [llama.bos_token_id] if reads is llama else []  # Qwen2 has no such token
    end = "</s>" if reads is llama else "<|im_end|>"
    caption = reads.encode(f"A red dog.{end}", add_special_tokens=False)
    layout = build_layout(parts, captions=True)
    text = layout.kind == Kind.TEXT
    assert layout.token_id[text].tolist() == begin + caption
    learned = layout.loss_weight > 0
    assert layout.target[learned].tolist() == caption
    assert layout.kind[learned][0] == Kind.PATCH  # the caption's first token follows the video
    with pytest.raises(LayoutError, match="an answer must follow a text token"):
        build_layout(parts)


def test_a_caption_without_media_is_learned_after_a_token(tokenizer):
    example = Example("x", (), (Turn("", "A red dog."),))
    layout = build_layout(conversation.render_caption(example, tokenizer, []), captions=True)
    caption = tokenizer.encode("A red dog.<|im_end|>")
    assert layout.target[layout.loss_weight > 0].tolist() == caption[1:]


def test_what_does_not_fit_is_refused(llama, tokenizer, tmp_path):
    with pytest.raises(ConfigError, match="stage 'sft' has learned captions without questions"):
        reader(llama, captions=True)
    endless = PreTrainedTokenizerFast(tokenizer_object=llama.backend_tokenizer)
    with pytest.raises(DataError, match="has no eos_token, which ends an answer"):
        conversation.check_tokenizer(endless, LLAMA)
    conversation.check_tokenizer(llama, LLAMA)
    llama.save_pretrained(tmp_path)
    model = reader(llama)
    assert load_tokenizer(model.config, tmp_path).eos_token == "</s>"
    config = schema.base()
    config.stages.sft, config.curriculum = schema.stage(), ("sft",)
    with pytest.raises(DataError, match=r"lacks <\|im_start\|>.*prompt_format = llama2_base"):
        load_tokenizer(freeze(config), tmp_path)
