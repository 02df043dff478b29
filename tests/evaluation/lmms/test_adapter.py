"""Requests of lmms-eval against the model's own methods, one by one."""

import numpy as np
import pytest
from PIL import Image
from tests.evaluation import long_questions
from tests.evaluation.long_questions import WORDS

import elva_jax
from elva_jax.data import conversation
from elva_jax.data.example import Example, Turn
from elva_jax.errors import LayoutError
from elva_jax.evaluation.lmms.adapter import Adapter
from elva_jax.evaluation.lmms.opened import Opened
from elva_jax.evaluation.lmms.options import parse_options
from elva_jax.evaluation.lmms.pipeline import writes
from elva_jax.inference import media as media_requests
from elva_jax.inference.prefilled import Answer
from elva_jax.inference.sampling import Sampling

NEW = 6
GONE = "/no/such.mp4"


@pytest.fixture(scope="module")
def docs(clips):
    """Questions of different lengths, several about one video; the third one cannot be read."""
    names = [clips[0], clips[1], GONE, clips[0], None, clips[2]]
    questions = [f"{'Where to? ' * (i % 2)}What moves? {i}" for i in range(len(names))]
    return [{"video": v, "question": q} for v, q in zip(names, questions, strict=True)]


def adapter(model, docs, *, chat=False, **options):
    options = parse_options({"pretrained": "x", "batch": 2, "max_new_tokens": NEW, **options})
    opened = Opened(model=model, step=3, weights="0" * 16)
    return Adapter(opened, options, {"local": {"test": docs}}, chat=chat)


def visuals(doc):
    return [doc["video"]] if doc["video"] else []


def expected(model, doc, **settings):
    if doc["video"] == GONE:
        return ""
    return model.answer(doc["video"], doc["question"], max_new_tokens=NEW, **settings)


def test_written_answers_are_the_model_s_own_in_order(model, docs, ask, caplog):
    made, given = adapter(model, docs, batch=4), {"until": ["\n\n"], "num_beams": 4}
    requests = [ask(i, doc["question"], given, visuals) for i, doc in enumerate(docs)]
    with caplog.at_level("INFO", "elva_jax"):
        replies = list(made.write(requests))
    stop = Sampling(stop=("\n\n",))
    assert [r.text for r in replies] == [expected(model, doc, sampling=stop) for doc in docs]
    assert len({reply.text for reply in replies}) > 2
    assert replies[2].refused.startswith(f"{GONE}: ")
    assert made.refused == 1
    assert (
        f"1 question(s) could not be asked and have the answer '': local 2: {GONE}" in caplog.text
    )
    assert "generation_kwargs that do not apply are ignored: num_beams" in caplog.text
    assert replies[4].input_tokens < replies[0].input_tokens
    assert 0 < replies[0].output_tokens <= NEW


def own_request(model, doc):
    media = [model.read_media(doc["video"])] if doc["video"] else None
    return media_requests.Request(media, doc["question"])


def test_long_questions_have_the_model_s_own_answers_and_too_long_ones_cost_nothing(
    clips, ask, caplog
):
    model = long_questions.model()
    docs = [
        {"video": video, "question": long_questions.text(name)}
        for name in WORDS
        for video in (clips[0], None)
    ]
    requests = [ask(i, doc["question"], {}, visuals) for i, doc in enumerate(docs)]
    made = adapter(model, docs, batch=8, max_new_tokens=long_questions.NEW)
    too_long = long_questions.text("too long")
    with caplog.at_level("INFO", "elva_jax"):
        replies = list(made.write(requests))
    alike = model.generate(
        [own_request(model, doc) for doc in docs if doc["question"] != too_long],
        max_new_tokens=long_questions.NEW,
    )
    assert [r.text for r in replies if not r.refused] == [answer.text for answer in alike]
    for number, (doc, reply) in enumerate(zip(docs, replies, strict=True)):
        if doc["question"] == too_long:
            with pytest.raises(LayoutError) as alone:
                model.generate([own_request(model, doc)], max_new_tokens=long_questions.NEW)
            assert (reply.text, reply.refused) == ("", str(alone.value))
            assert f"local {number}: {alone.value}" in caplog.text
    assert made.refused == 2


def test_replies_come_while_later_requests_are_not_yet_asked(model, docs, ask):
    asked = []

    def watched(doc):
        asked.append(doc)
        return visuals(doc)

    docs = docs * 4
    requests = [ask(i, doc["question"], {}, watched) for i, doc in enumerate(docs)]
    replies = adapter(model, docs, batch=1).write(requests)
    assert next(replies).text == expected(model, docs[0])
    assert len(asked) == 8  # a window of four that is answered, and the next one
    replies.close()


def test_frames_edges_and_merging_follow_the_options(model, docs, ask):
    request = ask(0, docs[0]["question"], {}, visuals)
    options = {"high_frames": 1, "low_frames": 2, "high_edge": 32, "low_edge": 16, "merging": False}
    (reply,) = adapter(model, docs, **options).write([request])
    hybrid = elva_jax.Hybrid(high_frames=1, low_frames=2, high_edge=32, low_edge=16)
    assert reply.text == expected(model, docs[0], frames=hybrid, merging=False)
    (one,) = adapter(model, docs, frames=1).write([request])
    assert one.text == expected(model, docs[0], frames=1)
    assert one.input_tokens < reply.input_tokens


def test_task_code_that_ends_the_process_costs_one_answer(model, docs, ask):
    def missing(doc):
        raise SystemExit("video path does not exist")

    def image_gone(doc):
        raise FileNotFoundError("cover.png")

    makers = [missing, image_gone, visuals]
    requests = [
        ask(i, docs[i]["question"], {}, make) for i, make in zip((0, 1, 3), makers, strict=True)
    ]
    made = adapter(model, docs)
    replies = list(made.write(requests))
    assert [reply.refused for reply in replies] == [
        "the task ended the process: video path does not exist",
        "cover.png",
        "",
    ]
    assert (replies[2].text, made.refused) == (expected(model, docs[3]), 2)


def test_fillers_of_a_rank_are_not_asked(model, docs, ask):
    request = ask(0, docs[0]["question"], {}, visuals)
    request.metadata["__padding_only__"] = True
    made = adapter(model, docs)
    (reply,) = made.write([request])
    assert (reply.text, reply.input_tokens, made.refused) == ("", 0, 0)


def test_repeats_of_a_drawn_answer_have_seeds_of_their_own(model, docs, ask):
    request = ask(0, docs[0]["question"], {"temperature": 2.0}, visuals)
    replies = list(adapter(model, docs, seed=5).write([request] * 3))
    drawn = [
        expected(model, docs[0], sampling=Sampling(temperature=2.0, seed=5 + n)) for n in range(3)
    ]
    assert [reply.text for reply in replies] == drawn
    assert len(set(drawn)) > 1


def test_an_excerpt_and_frames_at_hand(model, clips, ask):
    gray = np.full((32, 32, 3), 90, np.uint8)
    gray[:16] = 200
    picture = Image.fromarray(gray)
    given = [
        [{"type": "video", "path": clips[0], "video_start": 1.0, "video_end": 2.0}],
        [picture.convert("L"), [picture, picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)]],
    ]
    requests = [ask(i, "What moves?", {}, lambda doc: doc) for i in range(len(given))]
    replies = list(adapter(model, given).write(requests))
    excerpt, whole = model.read_media(clips[0], span=(1.0, 2.0)), model.read_media(clips[0])
    assert not np.array_equal(excerpt.patches, whole.patches)
    wanted = [[excerpt], [[gray], [gray, gray[::-1]]]]
    answers = [model.answer(media, "What moves?", max_new_tokens=NEW) for media in wanted]
    assert [reply.text for reply in replies] == answers


def test_markers_in_a_prompt_are_text_unless_they_place_the_media(model, clips, ask):
    docs = [
        {"question": "<image>\nWhat moves?", "video": clips[0]},
        {"question": "What moves?", "video": clips[0]},
        {"question": "Is <image> or <video> meant?", "video": clips[0]},
        {"question": "Is <image> or <video> meant?", "video": None},
    ]
    requests = [ask(i, doc["question"], {}, visuals) for i, doc in enumerate(docs)]
    placed, first, text, alone = adapter(model, docs).write(requests)
    assert not placed.refused + first.refused + text.refused + alone.refused
    assert placed == first
    clip_tokens = first.input_tokens - len_of(model, "What moves?")
    assert text.input_tokens == clip_tokens + len_of(model, docs[2]["question"])
    assert alone.input_tokens == len_of(model, docs[2]["question"])


def len_of(model, text):
    """Tokens of a prompt without media."""
    example = Example("", (), (Turn(text, "x"),))
    parts = conversation.render(example, model.tokenizer, (), model.data.system_prompt)[:-2]
    return sum(len(part.token_ids) for part in parts)


def test_likelihoods_are_losses_of_the_options(model, docs, ask):
    options = ["red", "blue", "a green square"]
    requests = [
        ask(i, docs[i]["question"], f" {text}", visuals, idx=k)
        for i in (0, 3, 2)
        for k, text in enumerate(options)
    ]
    made = adapter(model, docs, batch=4)
    losses = [made.loss(reply) for reply in made.score(requests)]
    own = [model.score(docs[i]["video"], docs[i]["question"], options) for i in (0, 3)]
    wanted = [-one.total for scores in own for one in scores]
    assert losses[:6] == pytest.approx(wanted, abs=1e-4)
    assert losses[6:] == [float("inf")] * 3
    means = adapter(model, docs, likelihood="mean")
    (reply,) = means.score(requests[:1])
    assert means.loss(reply) == pytest.approx(-own[0][0].mean, abs=1e-4)


def test_a_target_by_itself_says_whether_the_model_would_write_it(model, docs, ask):
    request = ask(0, docs[0]["question"], lambda doc: "red", visuals)
    (reply,) = adapter(model, docs).score([request])
    assert not reply.greedy
    for tokens, greedy in (((5, 6), True), ((5,), False), ((5, 6, 2), False), ((), False)):
        assert writes(Answer(text="", tokens=tokens, finished=True), (5, 6, 2)) == greedy
    unconditional = ask(0)
    unconditional.args = ("", "red")
    (reply,) = adapter(model, docs).score([unconditional])
    assert reply.likelihood.total < 0


def chat(ask, docs):
    return [ask(i, "", lambda doc: doc, {}) for i in range(len(docs))]


def test_chat_messages_with_media_among_them_and_earlier_turns(model, clips, ask):
    content = [
        {"type": "text", "text": "Compare"},
        {"type": "video", "url": clips[0]},
        {"type": "text", "text": "and"},
        {"type": "video", "url": clips[1], "start_time": 0.5, "end_time": 1.5},
    ]
    messages = [
        {"role": "system", "content": "Say <video>."},
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": "They are <image>."}]},
        {"role": "user", "content": "What moves?"},
    ]
    made = adapter(model, [messages], chat=True)
    (reply,) = made.write(chat(ask, [messages]))
    seen = [model.read_media(clips[0]), model.read_media(clips[1], span=(0.5, 1.5))]
    turns = (Turn("Compare\n<video>\nand\n<video>", "They are <image>."), Turn("What moves?", "x"))
    example, visible = Example("", (), turns), [visual.clip for visual in seen]
    parts = conversation.render(example, model.tokenizer, visible, "Say <video>.")[:-2]
    layout = elva_jax.build_layout(parts)
    assert (reply.input_tokens, made.refused) == (layout.length, 0)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "do not end with a question"),
        ([{"role": "assistant", "content": "Yes."}], "a message of the role 'assistant'"),
        ([{"role": "user", "content": [{"type": "audio", "url": "a.wav"}]}], "type 'audio'"),
        ([{"role": "user", "content": [{"type": "video", "url": 3}]}], "gives a int"),
        ([{"role": "user", "content": [{"type": "video", "url": "a", "end": -1}]}], "negative"),
    ],
)
def test_messages_that_cannot_be_asked_are_counted(model, ask, messages, reason):
    (reply,) = adapter(model, [messages], chat=True).write(chat(ask, [messages]))
    assert reason in reply.refused


def test_rounds_of_both_interfaces(model, docs, ask):
    """Round 2 names the first answer; the third document ends after one round."""

    def doc_to_text(doc, previous_output, round_idx, previous_round_info):
        if round_idx == 2 or doc is docs[2]:
            return None, None, True, previous_output, None
        assert (previous_round_info is None) == (round_idx == 1)
        return visuals(doc), f"Then? {previous_output[-1]}", False, previous_output, {"n": 1}

    def doc_to_messages(doc, round_idx=None, previous_output=None, previous_round_info=None):
        if round_idx is None:
            return said(visuals(doc), doc["question"])
        payload = doc_to_text(doc, previous_output, round_idx, previous_round_info)
        media, text, ended, outputs, info = payload
        return None if ended else said(media, text), ended, outputs, info

    def said(media, text):
        content = [{"type": "video", "url": path} for path in media]
        return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]

    simple = [ask(i, docs[i]["question"], {}, visuals, doc_to_text) for i in (0, 2, 5)]
    outputs = [each.outputs for each in adapter(model, docs).converse(simple)]
    chats = [ask(i, "", doc_to_messages, {}) for i in (0, 2, 5)]
    assert [each.outputs for each in adapter(model, docs, chat=True).converse(chats)] == outputs
    first = [expected(model, docs[i]) for i in (0, 5)]
    then = [
        model.answer(docs[i]["video"], f"Then? {text}", max_new_tokens=NEW)
        for i, text in zip((0, 5), first, strict=True)
    ]
    assert outputs == [[first[0], then[0]], [""], [first[1], then[1]]]
