"""configs/small.py: sizes as transformers counts them, and its smoke form."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import elva_jax
from elva_jax.models.build import parameter_shapes

FILE = Path(__file__).parents[2] / "configs/small.py"


@pytest.mark.parametrize("decoder", ["smollm2_135m", "smollm2_360m"])
def test_the_decoder_has_the_size_of_its_weights(decoder):
    """But for the rows of the embedding table that visual tokens and padding to 64 add."""
    config = elva_jax.load_config(f"{FILE}:decoder={decoder}")
    m, rows = config.model, 49_152
    names = dict(num_hidden_layers=m.num_layers, num_attention_heads=m.num_heads)
    names |= dict(hidden_size=m.hidden_size, intermediate_size=m.intermediate_size)
    names |= dict(num_key_value_heads=m.num_kv_heads, head_dim=m.head_dim, vocab_size=rows)
    with torch.device("meta"):
        theirs = LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, **names))
    shapes = parameter_shapes(config, "elva")
    ours = sum(math.prod(s) for path, s in shapes.items() if path.startswith("elva/decoder/"))
    added = (m.vocab_size - rows) * m.hidden_size
    assert ours - added == sum(leaf.numel() for leaf in theirs.parameters())


def test_the_smoke_form_trains(data_dir, tmp_path):
    words = [f"--config.data_dir={data_dir}", "--config.curriculum=('sft',)"]
    for source, split in (("images", "image"), ("videos", "train")):
        mixture = f"--config.stages.sft.data.mixture.{source}"
        words += [f"{mixture}.name=moving_shapes/easy", f"{mixture}.split={split}"]
    # One merging layer of three, and pairs of layers that are compiled once.
    words += ["--config.model.merge_layers=(2,)", "--config.model.merge_policies=('both',)"]
    words += ["--config.model.merge_thresholds=(0.6,)", "--config.model.merge_ratios=(0.5,)"]
    config = elva_jax.load_config(f"{FILE}:decoder=smoke", words)
    assert elva_jax.train(config, tmp_path) == 0
    lines = (tmp_path / "sft" / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert last["step"] == 2
    assert math.isfinite(last["loss"])
    assert 0 < last["merge/kept_mean"] < 1


def test_ones_own_clips_are_a_part_of_the_videos():
    config = elva_jax.load_config(f"{FILE}:own=clips.json,guidance=siglip")
    shares = {name: source.weight for name, source in config.stages.video.data.mixture.items()}
    assert shares == {"images": 1, "videos": 3, "own": 1}
    assert config.stages.video.loss.tube == 1
    assert config.stages.sft.loss.tube == 0
