"""Configuration of ELVA (arXiv 2503.18422), a Qwen2 decoder that reads pixels directly."""

from transformers import PreTrainedConfig

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3")
MERGE_POLICIES = ("threshold", "ratio", "both", "pool")


class ElvaConfig(PreTrainedConfig):
    """The architecture of the model.

    The decoder's fields have Qwen2's names and meanings. RoPE can be scaled as `default`, `linear`,
    `dynamic`, `yarn` or `llama3`; `dynamic` always uses `max_position_embeddings`, so that a result
    never depends on the length of the batch.

    Args:
      patch_size: side of a patch in pixels.
      patch_width: width of the patch embedding.
      patch_embed: 'video': `<FRAME>` and `<LINE>` attend to their patches; 'naive': they are plain
        learned vectors.
      patch_heads: heads of that attention.
      pixel_mean: what the patch embedding subtracts from pixels of 0 to 1 …
      pixel_std: … before it divides by this.
      merge_layers: decoder layers before which visual tokens merge, increasing; empty: never.
      merge_policies: 'threshold', 'ratio', 'both' or 'pool' for each of them.
      merge_thresholds: cosine above which a token merges into the next one at its grid position.
      merge_ratios: share that is kept: of the entering patches, for 'ratio' and 'both'; of the
        patches at each grid position, for 'pool'.
      merge_lines: whether `<LINE>` tokens merge too, along their row index.
      merge_survivor: 'last' or 'first', the member of a run of merged tokens at which their mean
        stands.
      merging: whether merging is on unless a call says otherwise.
      system_prompt: the system turn that the chat template adds to messages without one; for the
        record.
      frame_token_id: id of `<FRAME>` in `input_ids`, which has no row in the embedding table.
      patch_token_id: likewise, of a patch.
      line_token_id: likewise, of `<LINE>`.
    """

    model_type = "elva"
    keys_to_ignore_at_inference = ("past_key_values",)

    vocab_size: int = 151936
    hidden_size: int = 1536
    intermediate_size: int = 8960
    num_hidden_layers: int = 28
    num_attention_heads: int = 12
    num_key_value_heads: int = 2
    head_dim: int = 128
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    tie_word_embeddings: bool = True
    attention_bias: bool = True
    attention_dropout: float | int = 0.0
    rope_parameters: dict | None = None
    patch_size: int = 28
    patch_width: int = 1024
    patch_embed: str = "video"
    patch_heads: int = 1
    pixel_mean: float = 0.5
    pixel_std: float = 0.5
    merge_layers: list[int] | tuple[int, ...] = ()
    merge_policies: list[str] | tuple[str, ...] = ()
    merge_thresholds: list[float] | tuple[float, ...] = ()
    merge_ratios: list[float] | tuple[float, ...] = ()
    merge_lines: bool = False
    merge_survivor: str = "last"
    merging: bool = True
    system_prompt: str = ""
    frame_token_id: int = 151646
    patch_token_id: int = 151647
    line_token_id: int = 151648
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs):
        if self.rope_parameters is None:
            self.rope_parameters = {"rope_type": "default", "rope_theta": 1_000_000.0}
        self._check()
        super().__post_init__(**kwargs)

    def validate_rope(self):
        """Replaces a check that rejects `dynamic` with `original_max_position_embeddings`."""
        kind = self.rope_parameters.get("rope_type", "default")
        if kind not in ROPE_TYPES:
            raise ValueError(
                f"rope_parameters: rope_type {kind!r} is unknown to ELVA; use one of"
                f" {', '.join(ROPE_TYPES)}"
            )

    def _check(self):
        self.validate_rope()
        cuts = list(self.merge_layers)
        if cuts != sorted(set(cuts)) or any(not 0 <= cut < self.num_hidden_layers for cut in cuts):
            raise ValueError(
                f"merge_layers must increase within 0 … {self.num_hidden_layers - 1}, got {cuts}"
            )
        for name in ("merge_policies", "merge_thresholds", "merge_ratios"):
            if len(getattr(self, name)) != len(cuts):
                raise ValueError(
                    f"{name} needs one entry for each of merge_layers = {cuts}, has"
                    f" {len(getattr(self, name))}"
                )
        if unknown := set(self.merge_policies) - set(MERGE_POLICIES):
            raise ValueError(
                f"merge_policies: {unknown.pop()!r} is unknown; use one of"
                f" {', '.join(MERGE_POLICIES)}"
            )
        if self.merge_survivor not in ("last", "first"):
            raise ValueError(
                f"merge_survivor: {self.merge_survivor!r} is unknown; use last or first"
            )
        if self.patch_embed not in ("video", "naive"):
            raise ValueError(f"patch_embed: {self.patch_embed!r} is unknown; use video or naive")


__all__ = ["ElvaConfig"]
