"""Patterns over text of users take linear time."""

import contextlib
import random
import sys
import time
import unicodedata
from pathlib import Path

import pytest

from elva_jax.config import load, mixtures
from elva_jax.config.check import nearest
from elva_jax.data import conversation
from elva_jax.data.example import Example, Turn
from elva_jax.data.readers import chat, json_file, webdataset
from elva_jax.errors import ConfigError, ElvaError
from elva_jax.evaluation import answers
from elva_jax.evaluation.benchmarks import own_fields
from elva_jax.evaluation.benchmarks.yes_no import yes_no_question
from elva_jax.evaluation.judge.replies import parse_reply
from elva_jax.hf.tensor_store import is_hub_name
from elva_jax.inference import parts
from elva_jax.testing.models import tiny_tokenizer
from elva_jax.tools.datasets.build import start
from elva_jax.tools.recaption import filters, prompts
from elva_jax.utils.chat_client import Reply

ROOT = Path(__file__).parents[1]
LENGTH = 60_000  # a pattern that took 4.8 s for 20,000 spaces would take 43 s
PIECES = (
    *(" ", "\n", " \n", "\t", "\u3000", "<", "<image", "<video>", "<|", "<|im_start|>", "1", "1."),
    *(
        "-1 ",
        "'",
        "a'",
        "a",
        "a ",
        "a/",
        "a.",
        "_",
        "{",
        "{1..",
        "[",
        "a,",
        "\u0300\u0345",
        "\ufdfa",
    ),
    *("i cannot ", "against ", "no image ", "first:", "%", "é", "가", "\u1100", "."),
)
TOKENIZER = tiny_tokenizer()


def example(text):
    return Example("x", (), (Turn(text, "a"),))


def sampling(text):
    with pytest.raises(ValueError, match="is none of"):
        mixtures.parse_sampling(text)


def override(text):
    with pytest.raises(ConfigError):
        load.load(str(ROOT / "configs/tiny.py"), [f"--config.{text}=1"])


READERS = {
    "split_text": conversation.split_text,
    "has_markers": lambda text: conversation.has_markers(example(text)),
    "render": lambda text: conversation.prompt_parts(text + "x", (), TOKENIZER),
    "tokenizer": lambda text: TOKENIZER.encode(text, add_special_tokens=False),
    "question": lambda text: parts.question(text + "x"),
    "placed": parts.placed,
    "line of markers": chat.LINE.fullmatch,
    "chat marker": chat.MARKER.findall,
    "normalize": answers.normalize,
    "option_index": lambda text: answers.option_index(text, [text, "a"]),
    "repeats": filters.repeats,
    "reply": lambda text: filters.reason(
        Reply(text=text, finish="stop", prompt_tokens=0, new_tokens=0)
    ),
    "refusal": filters._REFUSAL.search,
    "hint": lambda text: prompts._plain(text, 100),
    "tar name": webdataset.NAME.fullmatch,
    "tar range": webdataset.RANGE.findall,
    "json space": json_file.SPACE.match,
    "data set name": start.WORD.fullmatch,
    "hub name": is_hub_name,
    "nearest": lambda text: nearest(text, ["model.hidden_size", "tokenizer", "stages"]),
    "listed options": own_fields.listed_options,
    "a judge's reply": lambda text: parse_reply(text, with_verdict=True),
    "yes or no": lambda text: yes_no_question("x", (), text + "x", "yes"),
    "sampling": sampling,
    "override": override,
}


@pytest.mark.parametrize("name", READERS)
def test_time_grows_no_faster_than_the_text(name):
    """A quadratic pattern needs minutes for these; the limit is no measure of speed."""
    read = READERS[name]
    start = time.process_time()
    for piece in PIECES:
        with contextlib.suppress(ElvaError):  # a wrong input is refused, as fast
            read((piece * LENGTH)[:LENGTH] + "x")
    assert time.process_time() - start < 25


def test_the_same_letters_as_unicode_defines():

    rng = random.Random(0)
    odd = [chr(n) for n in range(sys.maxunicode + 1) if unicodedata.combining(chr(n))]
    odd += ["é", "ﬁ", "가", "\u1100\u1161\u11a8", "Å", "\u1e9b\u0323", "ǆ", "a", " ", "Σ"]
    for _ in range(20_000):
        text = "".join(rng.choices(odd, k=rng.randrange(8)))
        assert answers.nfkc(text) == unicodedata.normalize("NFKC", text), ascii(text)
