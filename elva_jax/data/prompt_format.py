"""How questions, answers and media become the tokens of a conversation: ChatML or LLaMA-2 base.

    chatml       <|im_start|>user [newline] [VISUAL] What moves?<|im_end|> [newline]
                 <|im_start|>assistant [newline] A circle.<|im_end|> [newline]

    llama2_base  <s> [VISUAL] In: What moves? [newline] Out: A circle.</s>
                 In: And now? [newline] Out: Nothing.</s>

In ChatML the tokens of a medium replace its marker. LLaMA-2 base is the format of MERV
(arXiv 2501.01426): there, media stand before the question that is about them, whatever place it
gives them, so those of the first question stand right after the first token. Every piece, which is
one question or one answer, becomes tokens on its own, and has no white space at its end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from elva_jax.config.schema import Config
from elva_jax.data import tokenizer as tokenizers
from elva_jax.data.chat_tokens import token_ids
from elva_jax.errors import DataError
from elva_jax.video.layout import Clip, Text

Place = Literal["first", "next", "after_answer"]


class PromptFormat(ABC):
    """The tokens around questions and answers; see the module."""

    @abstractmethod
    def question(
        self,
        texts: Sequence[str],
        clips: Sequence[Clip],
        tokenizer: PreTrainedTokenizerBase,
        *,
        place: Place,
        system: str = "",
    ) -> list[Text | Clip]:
        """A question, up to where its answer begins.

        Args:
          texts: the text of the question around its media, one more than `clips`.
          clips: its media.
          tokenizer: reads the texts.
          place: first: it opens the conversation; next: it follows an answer; after_answer: it
            follows an answer without its end, which comes first here.
          system: text of the system turn of a conversation that it opens; "": none.
        """

    @abstractmethod
    def shared(
        self, clips: Sequence[Clip], tokenizer: PreTrainedTokenizerBase, system: str
    ) -> list[Text | Clip]:
        """The beginning of a conversation, which independent questions share."""

    @abstractmethod
    def branch(
        self, question: str, tokenizer: PreTrainedTokenizerBase, system: str
    ) -> tuple[int, ...]:
        """Token ids of an independent question after what it shares with others."""

    @abstractmethod
    def answer_ids(self, answer: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """Token ids of an answer, without the white space around it, and its end."""

    @abstractmethod
    def first_ids(self, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """Token ids before a caption without any question."""

    def last_ids(self, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """Token ids after the last answer of a conversation in training."""
        del tokenizer
        return ()

    @abstractmethod
    def end_ids(self, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
        """Ids of the tokens of which each ends an answer."""

    def check(self, tokenizer: PreTrainedTokenizerBase) -> None:  # noqa: B027 nothing to check
        """Checks that the tokenizer has the format's tokens.

        Raises:
          DataError: it lacks one.
        """


class ChatMl(PromptFormat):
    """Qwen2's format."""

    _ANSWER = "<|im_end|>\n<|im_start|>assistant\n"  # between a question and its answer
    _USER = "<|im_start|>user\n"

    def question(
        self,
        texts: Sequence[str],
        clips: Sequence[Clip],
        tokenizer: PreTrainedTokenizerBase,
        *,
        place: Place,
        system: str = "",
    ) -> list[Text | Clip]:
        """See `PromptFormat.question`."""
        before = {
            "first": self._header(system),
            "next": (f"\n{self._USER}",),
            "after_answer": (f"{tokenizers.TURN_END}\n{self._USER}",),
        }[place]
        parts: list[Text | Clip] = []
        for text, clip in zip(texts[:-1], clips, strict=True):
            parts += [Text(token_ids(tokenizer, *before, text)), clip]
            before = ("",)
        return [*parts, Text(token_ids(tokenizer, *before, texts[-1], self._ANSWER))]

    def shared(
        self, clips: Sequence[Clip], tokenizer: PreTrainedTokenizerBase, system: str
    ) -> list[Text | Clip]:
        """See `PromptFormat.shared`."""
        return [Text(token_ids(tokenizer, *self._header(system))), *clips]

    def branch(
        self, question: str, tokenizer: PreTrainedTokenizerBase, system: str
    ) -> tuple[int, ...]:
        """See `PromptFormat.branch`."""
        del system
        return token_ids(tokenizer, "", question, self._ANSWER)

    def answer_ids(self, answer: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """See `PromptFormat.answer_ids`."""
        return token_ids(tokenizer, "", answer.strip(), tokenizers.TURN_END)

    def first_ids(self, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """None; a caption follows its media."""
        del tokenizer
        return ()

    def last_ids(self, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """The newline after the last turn."""
        return token_ids(tokenizer, "\n")

    def end_ids(self, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
        """`<|im_end|>`, and the tokenizer's own end."""
        end: Any = tokenizer.convert_tokens_to_ids(tokenizers.TURN_END)  # one id, no list
        return frozenset({end, tokenizer.eos_token_id} - {None})

    def _header(self, system: str) -> tuple[str, ...]:
        """The pieces before the first question: templates and the system prompt in turn."""
        if not system:
            return (self._USER,)
        return ("<|im_start|>system\n", system, f"{tokenizers.TURN_END}\n{self._USER}")


class Llama2Base(PromptFormat):
    """MERV's format for LLaMA-2 without chat training; a system turn begins the first question."""

    def question(
        self,
        texts: Sequence[str],
        clips: Sequence[Clip],
        tokenizer: PreTrainedTokenizerBase,
        *,
        place: Place,
        system: str = "",
    ) -> list[Text | Clip]:
        """See `PromptFormat.question`."""
        asked = " ".join(filter(None, texts))
        text = Text(self.branch(asked, tokenizer, system if place == "first" else ""))
        if place == "first":
            return [*self.shared(clips, tokenizer, system), text]
        end = (tokenizer.eos_token_id,) if place == "after_answer" else ()
        if clips:
            return [*([Text(end)] if end else []), *clips, text]
        return [Text((*end, *text.token_ids))]

    def shared(
        self, clips: Sequence[Clip], tokenizer: PreTrainedTokenizerBase, system: str
    ) -> list[Text | Clip]:
        """See `PromptFormat.shared`."""
        del system
        return [Text(self.first_ids(tokenizer)), *clips]

    def branch(
        self, question: str, tokenizer: PreTrainedTokenizerBase, system: str
    ) -> tuple[int, ...]:
        """See `PromptFormat.branch`."""
        asked = "\n".join(filter(None, (system.strip(), question)))
        return token_ids(tokenizer, "In: ", asked, "\nOut:")

    def answer_ids(self, answer: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """See `PromptFormat.answer_ids`."""
        return token_ids(tokenizer, "", answer.strip(), tokenizer.eos_token)

    def first_ids(self, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """The tokenizer's `<s>`, if it has one; Qwen2's has none."""
        begin = tokenizer.bos_token_id
        return () if begin is None else (begin,)

    def end_ids(self, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
        """The tokenizer's `</s>`."""
        return frozenset({tokenizer.eos_token_id})

    def check(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """See `PromptFormat.check`."""
        if tokenizer.eos_token_id is None:
            raise DataError(
                f"tokenizer {tokenizer.name_or_path}: has no eos_token, which ends an answer of"
                " data.prompt_format = llama2_base; use the tokenizer of a LLaMA-2"
            )


CHATML = ChatMl()
FORMATS: dict[str, PromptFormat] = {"chatml": CHATML, "llama2_base": Llama2Base()}  # by key


def load_tokenizer(config: Config, folder: str | Path) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a run, which needs ChatML's tokens where one of its stages does.

    Raises:
      DataError: it cannot be loaded, or lacks them.
    """
    formats = {config.stages[name].data.prompt_format for name in config.curriculum}
    return tokenizers.load(folder, chat="chatml" in formats)
