"""Fixtures: a tokenizer and a tiny model with random weights so large that every token matters."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elva_jax import testing
from elva_jax.config import schema
from elva_jax.config.serialize import freeze
from elva_jax.inference.model import ElvaModel
from elva_jax.models.elva import Elva
from elva_jax.tools.datasets.moving_shapes.tokenizer import build_for_moving_shapes
from elva_jax.video.layout import Text, TokenLayout, build_layout, pack


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return build_for_moving_shapes(
        tmp_path_factory.mktemp("tokenizer"), ("easy",), vocab_size=512, scenes=60
    )


@pytest.fixture(scope="session")
def config():
    c = testing.tiny_config(vocab_size=520, max_position=118)
    c.stages.images, c.stages.teacher = schema.stage(), schema.stage()
    c.stages.teacher.kind = "teacher"
    c.curriculum = ("images", "video", "teacher")
    return c


@pytest.fixture(scope="session")
def params(config):
    return testing.random_params(freeze(config).model)


@pytest.fixture(scope="session")
def model(config, params, tokenizer):
    return ElvaModel(config, {"elva": params}, tokenizer)


@pytest.fixture(scope="session")
def shown(model, videos):
    """The four videos, one per row."""
    return [(model.read_media(frames),) for frames in videos]


@pytest.fixture(scope="session")
def batch(model, shown):
    """The four videos prefilled in one batch, with and without merging."""
    return {merging: model.prefill(shown, merging=merging) for merging in (False, True)}


@pytest.fixture(scope="session")
def whole_forward(model, params):
    """Log-probabilities [A, V] at an answer's tokens, from one forward pass without a cache.

    The forward pass over the whole conversation is that of training.
    """
    elva, length = Elva(model.model_config), 192

    @partial(jax.jit, static_argnums=3)
    def forward(params, patches, layout, merging):
        out = elva.apply({"params": params}, patches, layout, merging=merging)
        return jax.nn.log_softmax(elva.apply({"params": params}, out.hidden, method="head")), out

    def run(media, question, answer_ids, merging):
        layout = build_layout([*model.prompt_parts(question, media), Text(tuple(answer_ids))])
        batched = TokenLayout(*(jnp.asarray(field)[None] for field in pack([layout], length)))
        patches = np.zeros((1, 64, 192), np.uint8)
        for item in media:
            patches[0, : len(item.patches)] = item.patches
        log_probs, out = forward(params, patches, batched, merging)
        before = layout.length - len(answer_ids) - 1
        return np.asarray(log_probs, np.float64)[
            0, out.survivor[0, before : layout.length - 1]
        ], out

    return run
