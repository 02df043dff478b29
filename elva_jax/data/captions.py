"""Captions as the tokens of a text tower."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from elva_jax.config.schema import Config
from elva_jax.data.chat_tokens import token_ids
from elva_jax.data.conversation import vocabulary_id
from elva_jax.data.tokenizer import END
from elva_jax.data.tokenizer import load as load_tokenizer
from elva_jax.errors import ConfigError, DataError

# A folder with one of these files has a tokenizer.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "tokenizer.model",
)


class Captions(Protocol):
    """Turns captions into tokens of at most a given length; it can be pickled for workers."""

    @property
    def padding_id(self) -> int:
        """The id that fills a row after the end of its caption."""

    def ids(self, caption: str) -> list[int]:
        """The tokens of a caption, with those that begin and end it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunCaptions:
    """Captions in the tokens of the run, with `<|endoftext|>` as their end and padding."""

    tokenizer: PreTrainedTokenizerBase
    length: int

    @property
    def padding_id(self) -> int:
        """The id of `<|endoftext|>`."""
        return vocabulary_id(self.tokenizer, END)

    def ids(self, caption: str) -> list[int]:
        """The first tokens, and the end."""
        return [*token_ids(self.tokenizer, "", caption)[: self.length - 1], self.padding_id]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerCaptions:
    """Captions in the tokens that a text tower was trained with, such as WordPiece's.

    Names of special tokens in a caption, such as `[SEP]`, are text.
    """

    tokenizer: PreTrainedTokenizerBase
    length: int

    @property
    def padding_id(self) -> int:
        """The tokenizer's own padding."""
        padding: Any = self.tokenizer.pad_token_id  # not None: see `open_captions`
        return padding

    def ids(self, caption: str) -> list[int]:
        """The first tokens between those with which the tokenizer begins and ends a text."""
        return self.tokenizer(
            caption,
            add_special_tokens=True,
            split_special_tokens=True,
            truncation=True,
            max_length=self.length,
        )["input_ids"]


def open_captions(
    config: Config, weights: str, tokenizer: PreTrainedTokenizerBase
) -> RunCaptions | TowerCaptions:
    """The captions of a run's text tower.

    Args:
      config: the configuration of the run.
      weights: where the weights of the text tower come from; "": nowhere.
      tokenizer: the run's, for a text tower without one of its own.

    Raises:
      DataError: a tokenizer that is missing, damaged or cannot pad.
      ConfigError: one with more tokens than the text tower has rows.
    """
    tower, length = config.text_tower, config.teacher.text_length
    rows = tower.vocab_size or config.model.vocab_size
    source = tower.tokenizer or (weights if _has_tokenizer(weights) else "")
    if not source:
        captions: RunCaptions | TowerCaptions = RunCaptions(tokenizer=tokenizer, length=length)
    else:
        captions = TowerCaptions(tokenizer=load_tokenizer(source, chat=False), length=length)
        if captions.tokenizer.pad_token_id is None:
            raise DataError(f"{source}: its tokenizer has no padding token; add pad_token to it")
    if len(captions.tokenizer) > rows:
        key = "text_tower.vocab_size" if tower.vocab_size else "model.vocab_size"
        raise ConfigError(
            f"{key}: {rows} is less than the {len(captions.tokenizer)} tokens of the captions'"
            f" tokenizer{f' {source}' if source else ''}"
        )
    return captions


def _has_tokenizer(weights: str) -> bool:
    """Whether weights come with a tokenizer: from a folder that has one, or from the hub."""
    folder = Path(weights)
    if not weights or folder.is_file():
        return False
    return not folder.is_dir() or any((folder / name).is_file() for name in TOKENIZER_FILES)
