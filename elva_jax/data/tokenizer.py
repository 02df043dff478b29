"""Tokenizers: loads any transformers folder, or trains a small byte-level BPE like Qwen2's."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from elva_jax.errors import DataError, first_line
from elva_jax.utils.code_references import code_references
from elva_jax.utils.read import read_json, refuse_irregular

END, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# Qwen2's pre-tokenization (Qwen2Tokenizer of transformers): contractions, words with at most one
# leading punctuation mark or space, single digits, punctuation, spaces.
_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# ChatML as in Qwen2, but without a default system turn.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' "
    "+ message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
VISUAL_TOKENS = ("<FRAME>", "<PATCH>", "<LINE>")  # the processor class of an exported model
_CHAT_TEXTS = ("system", "user", "assistant", "\n", "You are a helpful assistant.")


def build(
    texts: Iterable[str],
    folder: str | os.PathLike,
    vocab_size: int = 768,
    *,
    words: Sequence[str] = (),
) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE, and saves it with Qwen2's special tokens and chat template.

    The result is a deterministic function of the texts, words and size.

    Args:
      texts: training texts.
      folder: the folder into which tokenizer.json and tokenizer_config.json are written.
      vocab_size: maximum number of entries, including the 256 bytes and three special tokens.
      words: words that become single tokens, with and without a leading space, if possible within
        that size.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 3,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=2,
    )
    tokenizer.train_from_iterator(_weighted(texts, words), trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in (END, TURN_START, TURN_END)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END,
        additional_special_tokens=[TURN_START],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    return fast


def _weighted(texts: Iterable[str], words: Sequence[str]) -> Iterator[str]:
    yield from texts
    # Repeated so often that they are merged before rare words of the texts.
    for word in (*_CHAT_TEXTS, *words):
        yield from (word, f" {word}") * 1000


def load(name: str | os.PathLike, *, chat: bool = True) -> PreTrainedTokenizerBase:
    """Loads a tokenizer from a transformers folder (or, with network access, a hub name).

    Args:
      name: the folder.
      chat: whether it needs the special tokens of ChatML.

    Raises:
      DataError: the tokenizer cannot be loaded, or lacks the special tokens of conversations.
    """
    refuse_irregular(name)
    try:
        tokenizer = _open(name)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # transformers raises any type for damaged files
        code = (
            [*code_references(Path(name), DataError, "AutoTokenizer")]
            if os.path.isdir(name)
            else []
        )
        if code:
            raise DataError(
                f"{name}: its tokenizer is Python code, {code[0][0]} (named by {code[0][1]}),"
                " which is not run; use a tokenizer without code"
            ) from error
        raise DataError(
            f"{name}: no tokenizer there ({first_line(error)}); build one with `elva data build`"
        ) from error
    if not chat:
        return tokenizer
    vocabulary = tokenizer.get_vocab()
    if missing := [token for token in (TURN_START, TURN_END) if token not in vocabulary]:
        raise DataError(
            f"{name}: its vocabulary lacks {', '.join(missing)}; "
            "a tokenizer with Qwen's chat tokens is needed, or data.prompt_format = llama2_base"
        )
    if not tokenizer.chat_template:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _open(name: str | os.PathLike) -> PreTrainedTokenizerBase:
    """Opens a tokenizer that `build` wrote, or any other with transformers' AutoTokenizer."""
    folder = Path(name)
    settings = folder / "tokenizer_config.json"
    if (
        settings.exists()
        and read_json(settings).get("tokenizer_class") == PreTrainedTokenizerFast.__name__
    ):
        return PreTrainedTokenizerFast.from_pretrained(str(name), local_files_only=True)
    # Imported late, because it imports PyTorch if that is installed, which takes seconds.
    from transformers import AutoTokenizer, PreTrainedConfig  # noqa: PLC0415

    # The config.json of an exported ELVA refers to the model's code, and transformers would ask for
    # permission to run it; the tokenizer does not need it.
    plain = {"config": PreTrainedConfig()} if (folder / "configuration_elva.py").exists() else {}
    # Otherwise transformers would ask on standard input whether it may run a folder's code.
    return AutoTokenizer.from_pretrained(
        str(name), local_files_only=folder.exists(), trust_remote_code=False, **plain
    )
