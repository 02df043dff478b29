"""Tests of sampling against the logits processors of transformers."""

import jax
import numpy as np
import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor, TopPLogitsWarper

from elva_jax.errors import ConfigError
from elva_jax.inference.sampling import Sampling, _nucleus, choose

ROWS, WORDS = 3, 50


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(0, 3, (ROWS, WORDS)).astype(np.float32)


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
def test_nucleus_equals_that_of_transformers(logits, top_p):
    expected = TopPLogitsWarper(top_p)(None, torch.from_numpy(logits)).numpy()
    kept = np.isfinite(np.asarray(_nucleus(logits, top_p)))
    np.testing.assert_array_equal(kept, np.isfinite(expected))
    assert kept.any(axis=-1).all()


def test_of_equally_likely_tokens_the_first_is_chosen(logits):
    logits = np.round(logits)
    logits[0, [3, 7]] = 50
    logits[1] = -np.inf
    logits[2, -1] = 100
    assert ((logits == logits.max(-1, keepdims=True)).sum(-1) > 1)[:2].all()
    tokens = choose(logits, Sampling().params(WORDS, ()), np.zeros((ROWS, WORDS), bool), 0)
    np.testing.assert_array_equal(tokens, logits.argmax(-1))


def test_repetition_penalty_equals_that_of_transformers(logits):
    held = np.random.default_rng(1).integers(0, WORDS, (ROWS, 20))
    expected = RepetitionPenaltyLogitsProcessor(1.7)(
        torch.from_numpy(held), torch.from_numpy(logits)
    ).numpy()
    mask = np.zeros((ROWS, WORDS), bool)
    np.put_along_axis(mask, held, True, axis=-1)
    sampling = Sampling(repetition_penalty=1.7)
    tokens = choose(logits, sampling.params(WORDS, ()), mask, 0)
    np.testing.assert_array_equal(tokens, expected.argmax(-1))
    assert not np.array_equal(tokens, logits.argmax(-1))


def test_draws_follow_the_probabilities():
    """Frequencies over 4,000 seeds: 4 standard errors from the softmax, 0 outside the nucleus."""
    logits, draws = np.float32([[1.0, 0.0, 2.0, -1.0]]), 4000
    sampling = Sampling(temperature=0.7, top_p=0.95)
    params, none = sampling.params(4, ()), np.zeros((1, 0), bool)
    tokens = jax.vmap(lambda seed: choose(logits, params.replace(seed=seed), none, 3))(
        np.arange(draws, dtype=np.uint32)
    )
    frequency = np.bincount(np.asarray(tokens)[:, 0], minlength=4) / draws
    warped = TopPLogitsWarper(0.95)(None, torch.from_numpy(logits) / 0.7).softmax(-1)[0].numpy()
    error = np.sqrt(warped * (1 - warped) / draws)
    np.testing.assert_array_less(np.abs(frequency - warped), 4 * error + 1e-9)
    assert warped[3] == frequency[3] == 0


def test_a_draw_depends_on_seed_and_step_and_not_on_the_row(logits):
    same = np.repeat(logits[:1], ROWS, axis=0)
    sampling = Sampling(temperature=2.0)

    def draw(sampling, step):
        return np.asarray(choose(same, sampling.params(WORDS, ()), np.zeros((ROWS, 0), bool), step))

    first = [draw(sampling, step) for step in range(12)]
    assert all(len(set(tokens)) == 1 for tokens in first)
    assert len({int(tokens[0]) for tokens in first}) > 3
    np.testing.assert_array_equal(first, [draw(sampling, step) for step in range(12)])
    other = Sampling(temperature=2.0, seed=1)
    assert not np.array_equal(first, [draw(other, step) for step in range(12)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(temperature=-0.1), "temperature=-0.1"),
        (dict(top_p=0.0), "top_p=0.0"),
        (dict(top_p=1.5), "top_p=1.5"),
        (dict(repetition_penalty=0.0), "repetition_penalty=0.0"),
        (dict(stop=("a", "")), "stop: an empty string"),
    ],
)
def test_invalid_settings_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Sampling(**options)
