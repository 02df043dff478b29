"""Tests that inference with the encoder-based model equals its forward pass."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elva_jax.config.serialize import freeze
from elva_jax.inference.model import ElvaModel
from elva_jax.inference.scoring import Choice
from elva_jax.models.elva import Elva, dummy_inputs
from elva_jax.video.clip import keep_frames
from elva_jax.video.hybrid import square_frame
from elva_jax.video.layout import Clip, Text, TokenLayout, build_layout, pack
from elva_jax.video.resize import LazyFrame

QUESTION, OPTION = "What colour is the circle?", "red"


@pytest.fixture(scope="module")
def encoder(encoder_and_params):
    return encoder_and_params[0]


@pytest.fixture(scope="module")
def encoder_and_params(config, params, tokenizer):
    """The model of the other tests with a vision tower of 2 x 2 patches."""
    config = config.copy_and_resolve_references()
    config.model.update(
        patch_embed="encoder",
        merge_layers=(),
        merge_policies=(),
        merge_thresholds=(),
        merge_ratios=(),
    )
    config.teacher.update(
        image_size=20, patch_size=8, hidden_size=12, intermediate_size=16, num_layers=2, num_heads=2
    )
    model, rng = freeze(config).model, np.random.default_rng(0)
    shapes = nn.meta.unbox(
        jax.eval_shape(Elva(model).init, jax.random.key(0), *dummy_inputs(model))
    )["params"]["patch_embed"]
    embed = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32), shapes
    )
    params = {**params, "patch_embed": embed}
    return ElvaModel(config, params, tokenizer), params


def test_a_batch_equals_the_whole_forward_of_each(encoder_and_params, videos):
    """Rows with four frames, one frame and no frame in one batch."""
    encoder, params = encoder_and_params
    media = [(encoder.read_media(videos[0]),), (encoder.read_media(videos[3]),), ()]
    ids = encoder.tokenizer.encode(f"{OPTION}<|im_end|>", add_special_tokens=False)
    prefilled = encoder.prefill(media)
    rows = prefilled.score([[Choice(QUESTION, (OPTION,))]] * 3)
    model = Elva(encoder.model_config)

    @jax.jit
    def forward(patches, layout):
        hidden = model.apply({"params": params}, patches, layout).hidden
        return jax.nn.log_softmax(model.apply({"params": params}, hidden, method="head"))

    totals = []
    for shown, ((score,),) in zip(media, rows, strict=True):
        layout = build_layout([*encoder.prompt_parts(QUESTION, shown), Text(ids)])
        patches = np.zeros((1, 16, 192), np.uint8)
        for item in shown:
            patches[0, : len(item.patches)] = item.patches
        batched = TokenLayout(*(field[None] for field in pack([layout], 64)))
        log_probs = np.asarray(forward(patches, batched), np.float64)[
            0, layout.length - len(ids) - 1 : layout.length - 1
        ]
        assert score.total == pytest.approx(log_probs[np.arange(len(ids)), ids].sum(), rel=1e-5)
        totals.append(score.total)
    assert len({round(total, 3) for total in totals}) == 3, (
        "the video does not matter: the comparison would prove little"
    )
    assert prefilled.prefix_tokens[0] - prefilled.prefix_tokens[1] == 3 * 4


def test_media_are_bare_squares_of_the_towers_size(encoder, videos):
    seen = encoder.read_media(videos[2])
    assert seen.clip == Clip(((2, 2),) * 4, bare=True)
    frames = seen.patches.reshape(4, 2, 2, 8, 8, 3).swapaxes(2, 3).reshape(4, 16, 16, 3)
    np.testing.assert_array_equal(
        frames, [square_frame(LazyFrame.from_array(frame), 20, 1)[:16, :16] for frame in videos[2]]
    )
    assert keep_frames(seen, [1]).clip == Clip(((2, 2),), bare=True)
