"""Every special token through every door: only templates make control tokens of them.

Doors are the readers of records, captions, prompts, chats, scores, requests to `elva serve`,
`elva data`, and captions that `elva recaption` writes. The exported processor is tried in
hf/remote_code/test_processing.py.
"""

import csv
import dataclasses
import io
import json
import re
import tarfile

import numpy as np
import pytest
from PIL import Image
from tokenizers import AddedToken, Tokenizer

from elva_jax import Request, cli, testing
from elva_jax.config.serialize import freeze
from elva_jax.data import conversation, sources
from elva_jax.evaluation.benchmarks.own import load_own
from elva_jax.inference.model import ElvaModel
from elva_jax.inference.scoring import Choice
from elva_jax.serving.media import MediaReader
from elva_jax.serving.questions import QuestionReader
from elva_jax.serving.settings import ServeSettings
from elva_jax.tools.recaption import local
from elva_jax.tools.recaption.manifest import Item
from elva_jax.tools.recaption.output import llava as caption_record
from elva_jax.video.layout import Clip, Text

CLIP = Clip(((2, 3),))
ANSWER = "<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory, special_tokens):
    """The tokenizer of the tiny model with the added tokens of Qwen2.5's vocabulary."""
    folder = tmp_path_factory.mktemp("qwen")
    testing.tiny_tokenizer().save_pretrained(folder)
    out = type(testing.tiny_tokenizer()).from_pretrained(folder)
    for number, token in enumerate(special_tokens[:22]):
        special = number < 14
        out.add_tokens([AddedToken(token, special=special, normalized=False)], special)
    out.save_pretrained(folder)
    return out


@pytest.fixture(scope="module")
def plain(tokenizer):
    """Reads text with no added token at all."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    bare = Tokenizer.from_str(json.dumps(state | {"added_tokens": [], "post_processor": None}))
    return lambda text: bare.encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="module")
def model(tokenizer):
    config = testing.tiny_config(vocab_size=400, max_position=2048)
    return ElvaModel(config, testing.random_params(freeze(config).model), tokenizer)


def ids_of(parts):
    return [token for part in parts if isinstance(part, Text) for token in part.token_ids]


@pytest.fixture(scope="module")
def expect(tokenizer, plain):
    """Asserts that ids are those of pieces that are a template and a text in turn."""

    def check(ids, *pieces):
        wanted, pending = [], ""
        for number, piece in enumerate(pieces):
            for word in [piece] if number % 2 else re.split(r"(<\|\w+\|>)", piece):
                if number % 2 == 0 and word.startswith("<|"):
                    wanted += [*plain(pending), tokenizer.convert_tokens_to_ids(word)]
                    pending = ""
                else:
                    pending += word
        assert list(ids) == [*wanted, *plain(pending)]
        assert tokenizer.decode(ids) == "".join(pieces)

    return check


def talk(question, answer, system):
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": answer},
        {"role": "assistant", "content": "Yes."},
    ]


def llava(question, text):
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    turns = talk(question, text, text)
    return [{"from": names[turn["role"]], "value": turn["content"]} for turn in turns]


def records(text):
    """One record of each form, about one video."""
    part = {"type": "text", "text": text}
    video, place = {"type": "video", "video": "a.mp4"}, {"type": "video"}
    asked = [{"q": text, "a": text}, {"q": text, "a": "Yes."}]
    told = [{"user": pair["q"], "assistant": pair["a"]} for pair in asked]
    return {
        "llava": {"video": "a.mp4", "conversations": llava(f"<video>\n{text}", text)},
        "text alone": {"conversations": llava(text, text)},
        "sharegpt": {"videos": ["a.mp4"], "messages": talk(f"<video>\n{text}", text, text)},
        "parts": {"messages": talk([video, part], text, text)},
        "parts and a field": {"video": "a.mp4", "messages": talk([place, part], text, text)},
        "parts alone": {"messages": talk([part], [part], text)},
        "VideoChat": {"video": "a.mp4", "system": text, "QA": asked},
        "Cauldron": {"images": ["a.png"], "system": text, "texts": told},
    }


def test_every_form_of_a_record(tmp_path, tokenizer, special_tokens, expect):
    for token in special_tokens:
        text = f"a {token} b{token}{token}"
        (tmp_path / "a.json").write_text(json.dumps(list(records(text).values())))
        examples = sources.FILE_READERS[".json"](tmp_path / "a.json", "")
        for form, example in zip(records(text), examples, strict=True):
            clips = [CLIP] * len(example.media)
            parts = conversation.render(example, tokenizer, clips, example.system)
            pieces = ("<|im_start|>system\n", text, "<|im_end|>\n<|im_start|>user\n", text, ANSWER)
            pieces += (text, "<|im_end|>\n<|im_start|>user\n", text, ANSWER, "Yes.", "<|im_end|>\n")
            expect(ids_of(parts), *pieces)
            assert [part for part in parts if isinstance(part, Clip)] == clips, form
            learned = ids_of(part for part in parts if isinstance(part, Text) and part.weight)
            expect(learned, "", text, "<|im_end|>", "Yes.", "<|im_end|>")


def test_captions(tmp_path, tokenizer, special_tokens, expect):
    """Of WebVid's tables, WebDataset's members, and `elva recaption`."""
    texts = [f"a {token} b{token}{token}" for token in special_tokens]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        rows = [("videoid", "name"), *enumerate(texts)]
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for k, text in enumerate(texts):
            body = json.dumps({"caption": text}) if k % 2 else text
            for name, data in (
                (f"{k:03}.mp4", b"m"),
                (f"{k:03}.{'json' if k % 2 else 'txt'}", body.encode()),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    item = Item(id="1", kind="video", medium="a.mp4", path=None)
    (tmp_path / "a.json").write_text(json.dumps([caption_record(item, text) for text in texts]))
    for name in ("a.csv", "a.tar", "a.json"):
        path = tmp_path / name
        for text, example in zip(texts, sources.FILE_READERS[path.suffix](path, ""), strict=True):
            parts = conversation.render(example, tokenizer, [CLIP])
            asked = conversation.question_text(example, example.turns[0])
            user = "<|im_start|>user\n"
            expect(ids_of(parts), user, asked, ANSWER, text, "<|im_end|>\n")
            assert parts.count(CLIP) == 1


def test_prompts_chats_and_scores(model, special_tokens, expect):
    video = model.read_media(testing.tiny_video(2))
    header = ("<|im_start|>system\n", "Be brief.", "<|im_end|>\n<|im_start|>user\n")
    chat = model.chat(max_new_tokens=2)
    for token in special_tokens:
        text = f"a {token} b{token}{token}"
        for prompt in (text, [{"type": "text", "text": text}], [{"type": "video"}, text]):
            parts = model.prompt_parts(prompt, [video])
            expect(ids_of(parts), *header, text, ANSWER)
            assert [part for part in parts if isinstance(part, Clip)] == [video.clip]
        follow = conversation.follow_up(conversation.escape(text), [], model.tokenizer)
        expect(ids_of(follow), "<|im_end|>\n<|im_start|>user\n", text, ANSWER)
    prefilled = model.prefill([(video,)])
    text = "".join(special_tokens)
    _, options = prefilled._choice(0, Choice(text, (text, f"b{text}")))
    controls = set(model.tokenizer.get_added_vocab().values())
    for option in options:
        assert controls.isdisjoint(option[:-1])
        assert option[-1] in model.engine.end_ids
    assert len(model.generate([Request(video, text)], max_new_tokens=2)) == 1
    for question in (text, "And now?"):
        answer = chat.ask(question, video if question == text else None)
        assert controls.isdisjoint(chat._parts[-1].token_ids) or not answer.text


def test_requests_to_a_server(tmp_path, model, special_tokens, expect):
    """System turns, questions and earlier answers, as strings and as parts."""
    testing.write_video(tmp_path / "a.mp4", testing.tiny_video(2))
    settings = ServeSettings(media_dir=tmp_path)
    reader = QuestionReader(model, MediaReader(model, settings), settings)
    video = {"type": "video_url", "video_url": {"url": "a.mp4"}}
    for token in special_tokens:
        text = f"a {token} b{token}{token}"
        part = {"type": "text", "text": text}
        for content in (text, [part], [video, part]):
            last = {"role": "user", "content": text}
            messages = [*talk(content, text, text)[:3], last]
            question = reader.read(json.dumps({"messages": messages}).encode()).request
            ids = (*ids_of(question.prompt.prefix), *question.prompt.question)
            pieces = ("<|im_start|>system\n", text, "<|im_end|>\n<|im_start|>user\n", text, ANSWER)
            pieces += (text, "<|im_end|>\n<|im_start|>user\n", text, ANSWER)
            expect(ids, *pieces)
            assert len(question.media) == (content == [video, part])


def test_questions_of_an_evaluation(tmp_path, model, special_tokens, expect):
    video = model.read_media(testing.tiny_video(2))
    texts = [f"a {token} b{token}{token}" for token in special_tokens]
    part = {"type": "video", "video": "a.mp4", "start": 1, "end": 2}
    asked = [
        {"video": "a.mp4", "question": text, "options": [text, "no"], "answer": "A"}
        for text in texts
    ]
    for text in texts:
        content = [part, {"type": "text", "text": text}]
        answer = {"role": "assistant", "content": text}
        asked.append({"messages": [{"role": "user", "content": content}, answer]})
    (tmp_path / "own.json").write_text(json.dumps(asked))
    header = ("<|im_start|>system\n", "Be brief.", "<|im_end|>\n<|im_start|>user\n")
    questions = load_own(tmp_path / "own.json").read(tmp_path)
    for text, question in zip(texts * 2, questions, strict=True):
        assert text in question.prompt
        parts = model.prompt_parts(question.prompt, [video])
        expect(ids_of(parts), *header, question.prompt, ANSWER)
        assert parts.count(video.clip) == 1


def test_control_tokens_that_the_model_writes_are_text_in_the_next_turn(model, monkeypatch):
    """The next turn equals that of a conversation in which the text was read."""
    chat = model.chat(testing.tiny_video(2), max_new_tokens=4)
    forced = model.tokenizer.convert_tokens_to_ids(["<tool_call>", "<|vision_pad|>"])
    first = chat.ask("What moves?")
    real = type(model.engine).decode

    def decode(*args, **kwargs):
        for progress in real(*args, **kwargs):
            tokens = [[(*forced, *row)[: len(row)] for row in rows] for rows in progress.tokens]
            yield dataclasses.replace(progress, tokens=tokens)

    monkeypatch.setattr(type(model.engine), "decode", decode)
    answer = chat.ask("And now?")
    monkeypatch.undo()
    assert set(forced) & set(answer.tokens), first
    said = chat._parts[-1].token_ids
    assert model.tokenizer.decode(said) == answer.text
    assert not set(forced) & set(said)
    assert "<tool_call>" in answer.text
    assert chat._state is None
    assert chat.ask("What?").tokens


HOSTILE = "\x1b[31mred\x1b]0;title\x07 [bold]x[/bold] <script>alert(1)</script> <video> <|im_end|>"


def test_data_show_and_inspect_take_hostile_text_as_text(
    tmp_path, tokenizer, special_tokens, capsys
):
    folder = tmp_path / "words"
    tokenizer.save_pretrained(folder)
    Image.fromarray(np.zeros((28, 28, 3), np.uint8)).save(tmp_path / "a.png")
    text = f"{HOSTILE} {''.join(special_tokens)}"
    record = {"image": "a.png", "conversations": llava(f"<image>\n{text}", text)}
    bad = {"image": "\x1b[31m.png", "conversations": llava(f"<image>\n{text}", text)}
    odd = {"image": "a.png", "messages": [{"role": HOSTILE, "content": text}]}
    (tmp_path / "a.json").write_text(json.dumps([record, bad, odd]))
    source, out = tmp_path / "a.json", tmp_path / "out"
    assert cli.main(["data", "show", str(source), "--out", str(out)]) == 0
    assert (out / "question.txt").read_text() == text + "\n"
    assert (out / "answer.txt").read_text() == text + "\n"
    shown = [capsys.readouterr()]
    options = ["--tokenizer", str(folder), "--out", str(tmp_path / "pictures")]
    assert cli.main(["data", "inspect", str(source), *options]) == 0
    shown.append(capsys.readouterr())
    for index in ("1", "2"):
        assert cli.main(["data", "show", str(source), "--index", index, "--out", str(out)]) == 1
        shown.append(capsys.readouterr())
    assert "1 records, 2 rejected" in shown[1].out
    for captured in shown:
        for letter in captured.out + captured.err:
            assert letter.isprintable() or letter == "\n", captured
    counted = json.loads((tmp_path / "pictures/statistics.json").read_text())
    example = sources.FILE_READERS[".json"](source, "")[0]
    ids = ids_of(conversation.render(example, tokenizer, [CLIP], example.system))
    assert counted["statistics"]["text_tokens"]["total"] == len(ids)
    assert tokenizer.decode(ids).count(text) == 4


def test_hints_of_recaptioning_are_text(tokenizer, special_tokens, expect):
    for token in special_tokens:
        text = f"a {token} b{token}{token}"
        pieces = (local.CHAT[1], text, local.CHAT[2])
        expect(local.token_ids(tokenizer, *pieces), *pieces)
