"""Reading media for a model: what takes too long is given up."""

import pytest

from elva_jax import testing
from elva_jax.errors import VideoError
from elva_jax.inference import prompts


def test_a_video_that_takes_too_long_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(prompts, "READ_SECONDS", 1.0)
    config = testing.tiny_config()
    config.stages[config.curriculum[-1]].data.time_limit = 1.0
    model = testing.tiny_model()
    reader = prompts.PromptReader(config, model.tokenizer)
    path = tmp_path / "endless.gif"
    path.write_bytes(testing.endless_animation())
    with pytest.raises(VideoError, match=r"endless\.gif: takes longer than 1 s to read; .*time"):
        reader.read_media(path)
