"""`ElvaModel`: questions about videos in, strings out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerBase

from elva_jax.checkpoints.restore import Run
from elva_jax.checkpoints.source import ParamSource
from elva_jax.config.schema import Config
from elva_jax.data.prompt_format import load_tokenizer
from elva_jax.data.tokenizer import VISUAL_TOKENS
from elva_jax.errors import ConfigError
from elva_jax.hf.export import save_pretrained
from elva_jax.inference.chat import Chat
from elva_jax.inference.engine import Engine
from elva_jax.inference.inspection import Inspection
from elva_jax.inference.load_weights import load_weights
from elva_jax.inference.media import Media, Prompt, Request
from elva_jax.inference.params import Weights, mesh_shardings, stack_layers, unstack_layers
from elva_jax.inference.prefilled import Answer
from elva_jax.inference.quantization import (
    Scheme,
    quantize_weights,
    quantizing,
    rounded_weights,
    scheme_of,
)
from elva_jax.inference.request_settings import MergingChoice
from elva_jax.inference.sampling import GREEDY, Sampling
from elva_jax.inference.scoring import Choice, Likelihood
from elva_jax.parallel.host_arrays import from_host
from elva_jax.utils import numbers
from elva_jax.video.hybrid import Hybrid

_LOG = logging.getLogger(__name__)


class ElvaModel(Inspection):
    """A trained model with its tokenizer; `elva_jax.load` makes one.

    Wherever a method takes `media`, it is a video, an image or several of them, or None for none.
    Each is a path (a file, or a folder of frames), the bytes of a file, frames at hand (uint8
    [H, W, 3] each, all of which are taken), or the result of `read_media`. A prompt
    is text, whatever it says, and the media stand before it; or a list of parts, strings and media:
    `["What differs between", {"type": "video"}, "and", {"type": "video"}, "?"]` says where the next
    of the media stands, `{"type": "video", "video": PATH, "start": 2.0, "end": 4.5, "nframes": 8}`
    names one, with the seconds that are meant and the number of frames, if they matter.

    `frames` says how a video is sampled: a maximum number, uniform in time; a `Hybrid` for
    frames of two sizes; None as in the last stage of training. `merging` says whether the model's
    merging layers act (paper, section 3.2); a `Merging` replaces them, and a name of
    `add_merging_profiles` stands for one.

    Args:
      config: the run's configuration.
      params: parameters of `models.elva.Elva`, the tree of a stage that holds them as "elva", or
        `Weights` on the devices of `mesh`.
      tokenizer: a ChatML tokenizer.
      stage: whose data settings (frames, longest edge, system prompt) apply; None: the last ELVA
        stage of the curriculum.
      mesh: devices over which the parameters and every batch are split, with axes named data, fsdp
        or tensor; None: the first device.
      weights: int8 or int4: the decoder's matrices are quantized; None: they are in the compute
        type.
      prefill_chunk: tokens of a prompt that prefill takes at a time, which bounds its memory; 0:
        all; None: all of up to 16,384, and 4,096 of a longer prompt.

    Attributes:
      config: the run's configuration; `config.model` describes the model.
      stage: name of the stage whose data settings apply.
      tokenizer: the tokenizer.

    Raises:
      ConfigError: there is no such stage, or it is not an ELVA stage; or Qwix is not installed.
    """

    def __init__(
        self,
        config: ConfigDict | Config,
        params: Any,
        tokenizer: PreTrainedTokenizerBase,
        stage: str | None = None,
        *,
        mesh: Mesh | None = None,
        weights: Scheme | None = None,
        prefill_chunk: int | None = None,
    ) -> None:
        super().__init__(config, tokenizer, stage)
        if not isinstance(params, Weights):
            params = params.get("elva", params)
            if mesh is not None:
                params = from_host(params, mesh_shardings(self.model_config, mesh))
            params = unstack_layers(self.model_config, params)
        words = tokenizer.get_vocab()
        # Tokens that stand for visual ones are the tokenizer's last, and never an answer.
        visual = [words[token] for token in VISUAL_TOKENS if token in words]
        self.engine = Engine(
            self.model_config,
            quantize_weights(params, weights) if weights else params,
            vocab_size=min(visual, default=len(tokenizer)),
            end_ids=tuple(sorted(self.form.end_ids(tokenizer))),
            mesh=mesh,
            prefill_chunk=prefill_chunk,
        )

    @classmethod
    def from_run(
        cls,
        run: Run | ParamSource,
        *,
        stage: str | None = None,
        mesh: Mesh | None = None,
        weights: Scheme | None = None,
        prefill_chunk: int | None = None,
    ) -> ElvaModel:
        """Takes a saved run whose weights have been read, or are read here; `stage` replaces its.

        They are read tensor by tensor into the types of inference, as `elva_jax.load` does.
        """
        tokenizer = load_tokenizer(run.config, run.tokenizer_dir)
        params: Any
        if isinstance(run, Run):
            params = run.params
        else:
            keep = quantizing(run.config.model, weights) if weights else None
            params, weights = load_weights(run, run.config.model, mesh, keep), None
        return cls(
            run.config,
            params,
            tokenizer,
            stage or run.stage,
            mesh=mesh,
            weights=weights,
            prefill_chunk=prefill_chunk,
        )

    @property
    def weights(self) -> Scheme | None:
        """How the decoder's matrices are quantized: int8, int4, or None for not at all."""
        return scheme_of(self.engine.weights)

    @property
    def params(self) -> dict[str, Any]:
        """The parameter tree of `models.elva.Elva`, in the types that inference keeps.

        Matrices of the decoder are in the compute type; quantized ones are the multiples of their
        scales, in float32 on the host. The layers are stacked for each access.
        """
        return stack_layers(rounded_weights(self.engine.weights))

    def answer(
        self,
        media: Media,
        prompt: Prompt,
        *,
        max_new_tokens: int = 64,
        merging: MergingChoice = True,
        frames: int | Hybrid | None = None,
        sampling: Sampling = GREEDY,
    ) -> str:
        """Answers one question.

        Args:
          media: what it is about.
          prompt: the question.
          max_new_tokens: longest answer.
          merging: whether the model's merging layers act, or others instead, or a name of theirs.
          frames: how videos are sampled.
          sampling: how tokens are chosen; greedy by default.

        Raises:
          VideoError: media that cannot be read.
          DataError: places in the prompt that do not match the media, or a part that cannot be
            followed.
          LayoutError: an empty prompt, or more tokens than RoPE can be scaled for.

        Example:
          >>> from elva_jax import testing
          >>> model, video = testing.tiny_model(), testing.tiny_video()
          >>> model.answer(video, "What moves?", max_new_tokens=4)
          '...'
        """
        (answer,) = self.generate(
            [Request(media, prompt)],
            max_new_tokens=max_new_tokens,
            merging=merging,
            frames=frames,
            sampling=sampling,
        )
        return answer.text

    def generate(
        self,
        requests: Sequence[Request],
        *,
        max_new_tokens: int = 64,
        merging: MergingChoice = True,
        frames: int | Hybrid | None = None,
        sampling: Sampling = GREEDY,
    ) -> list[Answer]:
        """Answers a batch of questions, all decoded together; arguments and errors as in `answer`.

        No answer depends on the other requests of the batch.

        Example:
          >>> from elva_jax import Request, testing
          >>> model, video = testing.tiny_model(), testing.tiny_video()
          >>> batch = [Request(video, "What moves?"), Request(None, "Who are you?")]
          >>> [len(answer.tokens) <= 4 for answer in model.generate(batch, max_new_tokens=4)]
          [True, True]
        """
        numbers.TOKENS.check("max_new_tokens", max_new_tokens)
        if not requests:
            return []
        read = [self.read_prompt(each.prompt, each.media, frames) for each in requests]
        media, prompts = [found for found, _ in read], [bare for _, bare in read]
        prefilled = self.prefill(media, prompts=prompts, merging=merging)
        questions = [[prompt] for prompt in prompts]
        rows = prefilled.generate(questions, max_new_tokens, sampling=sampling)
        return [answer for (answer,) in rows]

    def stream(
        self,
        media: Media,
        prompt: Prompt,
        *,
        max_new_tokens: int = 64,
        merging: MergingChoice = True,
        frames: int | Hybrid | None = None,
        sampling: Sampling = GREEDY,
    ) -> Iterator[str]:
        """As `answer`, piece by piece while the tokens are decoded.

        Example:
          >>> from elva_jax import testing
          >>> model, video = testing.tiny_model(), testing.tiny_video()
          >>> pieces = model.stream(video, "What moves?", max_new_tokens=4)
          >>> "".join(pieces) == model.answer(video, "What moves?", max_new_tokens=4)
          True
        """
        numbers.TOKENS.check("max_new_tokens", max_new_tokens)
        visuals, prompt = self.read_prompt(prompt, media, frames)
        prefilled = self.prefill([visuals], prompts=[prompt], merging=merging)
        yield from prefilled.stream(prompt, max_new_tokens, sampling=sampling)

    def chat(
        self,
        media: Media = None,
        *,
        max_new_tokens: int = 512,
        merging: MergingChoice = True,
        frames: int | Hybrid | None = None,
        sampling: Sampling = GREEDY,
    ) -> Chat:
        """Starts a conversation about some media; see `Chat.ask` and `Chat.stream`.

        Example:
          >>> from elva_jax import testing
          >>> chat = testing.tiny_model().chat(testing.tiny_video(), max_new_tokens=4)
          >>> for question in ("What moves?", "Where to?"):
          ...     answer = chat.ask(question)
        """
        return Chat(
            self,
            media,
            max_new_tokens=max_new_tokens,
            merging=merging,
            frames=frames,
            sampling=sampling,
        )

    def score(
        self,
        media: Media,
        prompt: Prompt,
        options: Sequence[str],
        *,
        merging: MergingChoice = True,
        frames: int | Hybrid | None = None,
    ) -> list[Likelihood]:
        """The likelihood of each option as the whole answer to one question.

        Raises:
          LayoutError: no options, or an empty one; and the errors of `answer`.

        Example:
          >>> from elva_jax import testing
          >>> model, video = testing.tiny_model(), testing.tiny_video()
          >>> [score.tokens for score in model.score(video, "What colour?", ["red", "blue"])]
          [2, 2]
        """
        visuals, prompt = self.read_prompt(prompt, media, frames)
        prefilled = self.prefill([visuals], prompts=[prompt], merging=merging)
        return prefilled.score([[Choice(prompt, tuple(options))]])[0][0]

    def save_pretrained(self, folder: str | Path, *, dtype: str = "float32") -> None:
        """Writes a Hugging Face folder that loads with transformers alone or with `elva_jax.load`.

        What quantization has rounded stays rounded, and a line of the log says so: the folder has
        the values with which this model computes, in `dtype`.

        Args:
          folder: one that does not exist yet, or is empty.
          dtype: float32 | bfloat16 | float16, of the weights.

        Raises:
          ConvertError: an encoder-based model, an unknown dtype, weights that `dtype` cannot hold,
            or a folder with something in it.
          ConfigError: the model is on a mesh of several processes.
        """
        if not self.engine.placement.lockstep.alone:
            raise ConfigError(
                "save_pretrained: the model is on a mesh of several processes; load it in one"
                " process, or run `elva convert export`"
            )
        if self.weights:
            _LOG.warning(
                "the weights are quantized to %s; %s gets them rounded", self.weights, folder
            )
        save_pretrained(
            folder, self.params, self.config, self.tokenizer, stage=self.stage, dtype=dtype
        )
