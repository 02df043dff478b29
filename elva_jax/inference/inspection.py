"""Inside a model: hidden states, merges, and the time and memory of an answer."""

from __future__ import annotations

from collections.abc import Sequence

from elva_jax.errors import ConfigError, LayoutError
from elva_jax.inference.batching import split_prompt
from elva_jax.inference.fusion import WEIGHTED, FusionWeights, fusion_weights, has_weights
from elva_jax.inference.hidden import HiddenStates
from elva_jax.inference.long_context import stretch_of
from elva_jax.inference.media import Media, Prompt
from elva_jax.inference.merge_map import MergeMap, merge_map_of
from elva_jax.inference.prefilled import Prefilling
from elva_jax.inference.request_settings import MergingChoice, chosen_merging
from elva_jax.inference.sampling import GREEDY, Sampling
from elva_jax.inference.stages import measured
from elva_jax.inference.trace import Trace, prompt_tokens, trace_of
from elva_jax.models.elva import merging_of
from elva_jax.ops.merging import Merging
from elva_jax.utils import numbers
from elva_jax.video.hybrid import Hybrid
from elva_jax.video.layout import Clip, Text


class Inspection(Prefilling):
    """The methods of `ElvaModel` that look inside."""

    def hidden_states(
        self,
        media: Media,
        prompt: Prompt,
        *,
        layers: Sequence[int] | None = None,
        merging: MergingChoice = True,
        frames: int | Hybrid | None = None,
    ) -> HiddenStates:
        """The hidden states of one prompt, up to where its answer begins.

        Args:
          media: what the prompt is about.
          prompt: the question.
          layers: the numbers of layers after which states are kept: 0 is the decoder's input, and
            the model's number of layers its output before the final norm; None: all.
          merging: whether the model's merging layers act, or others instead.
          frames: how videos are sampled.

        Returns:
          HiddenStates: per layer [C, D], C being the tokens that are left there, with what each of
          them is, how many tokens it stands for, and the map from the prompt's tokens to them.

        Raises:
          ConfigError: a layer that the model does not have; and the errors of `answer`.

        Example:
          >>> from elva_jax import testing
          >>> model, video = testing.tiny_model(), testing.tiny_video()
          >>> hidden = model.hidden_states(video, "What moves?", layers=[0, 2])
          >>> hidden.states[0].shape[0] == hidden.layout.length
          True
          >>> hidden.states[2].shape[0] == hidden.block(2).layout.length < hidden.layout.length
          True
        """
        visuals, prompt = self.read_prompt(prompt, media, frames)
        parts = self.prompt_parts(prompt, visuals)
        rows = self.rows([parts], [visuals], stretch=[self._stretch(parts)])
        chosen = chosen_merging(merging, self.merging_profiles)
        return self.engine.hidden_states(rows, layers, merging=chosen)

    def merge_map(
        self,
        media: Media,
        prompt: Prompt = "?",
        *,
        merging: MergingChoice = True,
        frames: int | Hybrid | None = None,
    ) -> MergeMap:
        """Which patches of a prompt merge, frame by frame, and how many the others stand for.

        The decoder is causal, so the text after the media changes nothing.

        Args:
          media: what the prompt is about.
          prompt: the question; it matters where it says something before its media.
          merging: whether the model's merging layers act, or others instead.
          frames: how videos are sampled.

        Raises:
          LayoutError: no media, or no merging layer that acts; and the errors of `answer`.

        Example:
          >>> from elva_jax import testing
          >>> model, video = testing.tiny_model(), testing.tiny_video()
          >>> merges = model.merge_map(video)
          >>> merges.layers[0].sizes[0].shape  # the patch grid of the first frame
          (4, 4)
          >>> int(sum(size.sum() for size in merges.layers[0].sizes))  # all patches of four frames
          64
          >>> merges.draw("all")[0].dtype
          dtype('uint8')
        """
        chosen = chosen_merging(merging, self.merging_profiles)
        layers = chosen.layers if isinstance(chosen, Merging) else None
        if chosen is True:
            layers = merging_of(self.model_config).layers
        if not layers:
            raise LayoutError("nothing merges: no merging layer acts")
        visuals, prompt = self.read_prompt(prompt, media, frames)
        if not visuals:
            raise LayoutError("nothing merges: the prompt has no videos or images")
        parts = self.prompt_parts(prompt, visuals)
        rows = self.rows([parts], [visuals], stretch=[self._stretch(parts)])
        return merge_map_of(self.engine.hidden_states(rows, (), merging=chosen), visuals)

    def trace(
        self,
        media: Media,
        prompt: Prompt,
        *,
        max_new_tokens: int = 64,
        merging: MergingChoice = True,
        frames: int | Hybrid | None = None,
        sampling: Sampling = GREEDY,
    ) -> Trace:
        """As `answer`, with tokens before and after each merging layer, time and memory.

        Example:
          >>> from elva_jax import testing
          >>> model, video = testing.tiny_model(), testing.tiny_video()
          >>> trace = model.trace(video, "What moves?", max_new_tokens=4)
          >>> trace.answer.text == model.answer(video, "What moves?", max_new_tokens=4)
          True
          >>> [merge.before_layer for merge in trace.merges]
          [1, 2]
        """
        numbers.TOKENS.check("max_new_tokens", max_new_tokens)
        with measured() as seconds:
            visuals, prompt = self.read_prompt(prompt, media, frames)
            prefilled = self.prefill([visuals], prompts=[prompt], merging=merging)
            ((answer,),) = prefilled.generate([[prompt]], max_new_tokens, sampling=sampling)
        return trace_of(prefilled, answer, prompt_tokens(prefilled, prompt), seconds, sampling)

    def fusion_weights(
        self, media: Media, *, frames: int | Hybrid | None = None
    ) -> tuple[FusionWeights, ...]:
        """How much each encoder of a MERV takes part in each video or image.

        Returns:
          One dictionary for each of the media, from the encoder's name to its weight; the weights
          of a video add up to 1. `trace` has them, too.

        Raises:
          ConfigError: a model that gives its encoders no weights.
          VideoError: media that cannot be read.
        """
        config = self.model_config
        if not has_weights(config):
            fusion = f", and model.merv.fusion {config.merv.fusion}" if config.encoders else ""
            raise ConfigError(
                f"the model has no fusion weights: model.patch_embed is {config.patch_embed}"
                f"{fusion}; they need merv with fusion {' or '.join(WEIGHTED)}"
            )
        return fusion_weights(self.engine, self.read_all(media, frames))

    def _stretch(self, parts: Sequence[Text | Clip]) -> int:
        """How RoPE is scaled for a whole prompt, which must end with text."""
        return stretch_of(self.model_config, split_prompt(parts).tokens)
