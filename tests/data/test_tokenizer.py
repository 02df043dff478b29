"""Tests of the small Qwen2-style tokenizer against transformers' Qwen2 and its training texts."""

import json
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen2Tokenizer

from elva_jax.data import tokenizer as tokenizers
from elva_jax.errors import DataError
from elva_jax.tools.datasets.moving_shapes import language, records
from elva_jax.tools.datasets.moving_shapes.style import HARD, POSITIONS
from elva_jax.tools.datasets.moving_shapes.tokenizer import build_for_moving_shapes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    build_for_moving_shapes(folder, scenes=600)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return tokenizers.load(folder)


def test_tokenizer_is_small_and_ends_with_qwens_special_tokens(tokenizer):
    assert len(tokenizer) <= 768
    ids = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    assert ids == [len(tokenizer) - 3, len(tokenizer) - 2, len(tokenizer) - 1]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


@given(text=st.text())
def test_any_text_is_decoded_unchanged(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


@given(
    text=st.text(
        alphabet=st.characters(codec="utf-8") | st.sampled_from("aB1 \n\r\t'.s"), max_size=30
    )
)
def test_texts_are_split_like_qwen2(tokenizer, text):
    reference = Qwen2Tokenizer().backend_tokenizer
    ours = tokenizer.backend_tokenizer
    normal = ours.normalizer.normalize_str(text)
    assert normal == reference.normalizer.normalize_str(text)
    assert ours.pre_tokenizer.pre_tokenize_str(normal) == reference.pre_tokenizer.pre_tokenize_str(
        normal
    )


ANSWERS = sorted(
    {*HARD.colours, *HARD.shapes, *" ".join(POSITIONS).split(), *language.NUMBERS, "up", "down"}
)


@pytest.mark.parametrize("word", [*ANSWERS, *"ABCD"])
def test_answer_words_are_one_token_with_and_without_a_space(tokenizer, word):
    assert tokenizer.tokenize(word) == [word]
    assert tokenizer.tokenize(f" {word}") == [f"Ġ{word}"]


def test_each_digit_is_one_token(tokenizer):
    assert all(tokenizer.tokenize(digit) == [digit] for digit in "0123456789")


def test_data_set_texts_have_little_more_than_one_token_per_word(tokenizer):
    words = tokens = 0
    for index in range(5000, 5100):
        annotation = records.annotation_of("hard", 0, "train", index, 8000)
        for turn in [
            *annotation["captions"]["object"],
            *annotation["captions"]["caption"],
            *annotation["questions"],
        ]:
            for text in (turn["question"], turn["answer"]):
                pieces = (
                    text.replace(".", " .")
                    .replace(",", " ,")
                    .replace("?", " ?")
                    .replace(":", " :")
                    .split()
                )
                words += len(pieces)
                tokens += len(tokenizer.encode(text))
    assert tokens <= 1.02 * words


def test_chat_template_is_qwens_format(tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What colour is it?"},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "And its shape?"},
    ]
    expected = (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat colour is it?<|im_end|>\n"
        "<|im_start|>assistant\nred<|im_end|>\n"
        "<|im_start|>user\nAnd its shape?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        == expected
    )
    assert (
        tokenizer.apply_chat_template(messages[1:2], tokenize=False)
        == "<|im_start|>user\nWhat colour is it?<|im_end|>\n"
    )
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == tokenizer.encode(expected)
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 5


def test_the_same_texts_give_the_same_files(folder, tmp_path):
    code = """
import sys
from elva_jax.tools.datasets.moving_shapes.tokenizer import build_for_moving_shapes
build_for_moving_shapes(sys.argv[1], scenes=600)
"""
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env={"PYTHONHASHSEED": "5"}, check=True
    )
    names = sorted(path.name for path in folder.iterdir())
    assert "tokenizer.json" in names
    assert names == sorted(path.name for path in tmp_path.iterdir())
    assert all((folder / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)


def test_tokenizer_is_built_from_any_texts(tmp_path):
    built = tokenizers.build(["to be or not to be"] * 3, tmp_path, 300, words=["question"])
    loaded = tokenizers.load(tmp_path)
    assert loaded.get_vocab() == built.get_vocab()
    assert len(loaded) <= 300
    assert loaded.tokenize("question") == ["question"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=f"{tmp_path}/none: no tokenizer there"):
        tokenizers.load(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"{tmp_path}/empty: no tokenizer there"):
        tokenizers.load(Path(tmp_path / "empty"))


def test_a_tokenizer_without_chat_tokens_is_refused(tmp_path):
    Qwen2Tokenizer(vocab={"a": 0, "<|endoftext|>": 1}, merges=[]).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"lacks <\|im_start\|>, <\|im_end\|>"):
        tokenizers.load(tmp_path)


def test_loading_a_tokenizer_does_not_import_pytorch(folder):
    """Importing it, where it is installed, takes seconds."""
    program = """
import sys
import elva_jax.training.train, elva_jax.evaluation.evaluate, elva_jax.inference.chat
from elva_jax.data import tokenizer
print(len(tokenizer.load(sys.argv[1])), "torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(len(tokenizers.load(folder))), "False"]


def test_damaged_settings_file_gives_one_line(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "damaged")
    (tmp_path / "damaged" / "tokenizer_config.json").write_text("{")
    with pytest.raises(DataError, match=r"damaged/tokenizer_config\.json: is not JSON \(Expecting"):
        tokenizers.load(tmp_path / "damaged")


def test_code_of_a_tokenizer_folder_is_neither_run_nor_asked_about(tmp_path, monkeypatch):
    """transformers would ask on standard input whether it may run the file."""
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')\n")
    settings = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil"}))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    with pytest.raises(
        DataError, match=r"code, evil\.Evil \(named by tokenizer_config\.json\), which is"
    ):
        tokenizers.load(tmp_path)
