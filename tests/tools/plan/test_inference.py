"""`elva plan --inference` against the arrays of a tiny model, and its advice against itself."""

import dataclasses
import functools
import json
import math

import jax
import pytest

from elva_jax import testing
from elva_jax.cli import main
from elva_jax.config.serialize import freeze
from elva_jax.errors import ConfigError
from elva_jax.inference import chunked_prefill, kv_cache
from elva_jax.inference.engine import Decoding
from elva_jax.inference.model import ElvaModel
from elva_jax.tools.plan import inference_case
from elva_jax.tools.plan.hardware import GIB, USABLE
from elva_jax.tools.plan.inference import memory_of, prefix_bytes, suffix_bytes, weight_bytes
from elva_jax.tools.plan.inference_advice import estimate, most_frames, with_frames
from elva_jax.tools.plan.inference_case import Case, shares_kept
from elva_jax.tools.plan.inference_command import plan
from elva_jax.video.hybrid import Hybrid


@pytest.fixture(scope="module")
def tiny():
    return testing.tiny_model()


@pytest.fixture(scope="module")
def case():
    """Wide enough for activations to matter beside the weights."""
    model = freeze(testing.tiny_config(hidden_size=64, intermediate_size=512)).model
    return Case(
        model=model,
        weights=model.dtype,
        frames=16,
        edge=32,
        kept=shares_kept(model, None),
        max_new_tokens=16,
    )


def allocated(tree):
    """Bytes that a program's arguments really take: int4 is packed."""
    program = jax.jit(lambda tree: tree, keep_unused=True).lower(tree).compile()
    return program.memory_analysis().argument_size_in_bytes


@pytest.mark.parametrize("weights", ["float32", "int8", "int4"])
def test_weights_take_what_a_models_arrays_take(tiny, weights):
    scheme = None if weights == "float32" else weights
    model = ElvaModel(tiny.config, tiny.params, tiny.tokenizer, weights=scheme)
    case = Case(model=model.model_config, weights=weights, frames=1, edge=32)
    assert weight_bytes(case) == allocated(model.engine.weights)


def test_caches_take_what_a_models_arrays_take(tiny, monkeypatch):
    prefilled = tiny.prefill([(tiny.read_media(testing.tiny_video(6)),)] * 3, merging=False)
    decoding = Decoding(max_new_tokens=20, capacity=24, interval=1)
    state = tiny.engine.start(prefilled.prefix, [[[1] * 5]] * 3, decoding)
    case = Case(
        model=tiny.model_config,
        weights="float32",
        frames=6,
        edge=32,
        batch=3,
        merging=False,
        max_new_tokens=24,
    )
    header = prefilled.prefix_tokens[0] - (case.tokens - inference_case.HEADER - 64 - 24)
    monkeypatch.setattr(inference_case, "HEADER", header)
    monkeypatch.setattr(inference_case, "QUESTION", 5)
    assert prefix_bytes(case) == allocated(prefilled.prefix.layers)
    assert suffix_bytes(case) == allocated(state.suffix)


def test_merging_shortens_the_caches_of_later_layers(case):
    assert [layers for layers, _ in case.blocks] == [1, 1, 1]
    first, second, third = (tokens for _, tokens in case.blocks)
    assert first == second == case.length > third  # a threshold alone may leave all tokens
    half = dataclasses.replace(case, kept=(0.5, 0.5))
    assert half.blocks[1][1] < first
    # One token of each of 16 tubes, 3 of each frame and the header are left of 16 x 19 and 32.
    least = dataclasses.replace(case, kept=(0.01, 0.01))
    assert least.blocks[2][1] == inference_case.GRID("", 32 + 16 * (1 + 4) + 16)
    assert prefix_bytes(least) < prefix_bytes(half) < prefix_bytes(case)
    with pytest.raises(ConfigError, match="--kept: 1 shares for 2 merging layers"):
        shares_kept(case.model, (0.5,))


def test_activations_of_a_layer_are_those_counted_by_hand(case):
    """The MLP's two products and their result are live at once, and the hidden states."""
    memory = memory_of(case)
    model, tokens = case.model, case.length
    by_hand = 4 * tokens * (3 * model.intermediate_size + 2 * model.hidden_size)
    assert 0.5 < memory.activations / by_hand < 1.5
    parts = dataclasses.astuple(memory)
    assert memory.total == sum(parts)
    assert min(parts) > 0


def test_as_many_frames_fit_as_it_says(case):
    case = dataclasses.replace(case, merging=False)
    memory = memory_of(case)
    usable = 3 * memory.total
    frames = most_frames(case, memory, usable)
    assert frames > case.frames
    fitting, more = (
        memory_of(with_frames(case, n)).total for n in (frames, math.ceil(1.2 * frames))
    )
    assert fitting < 1.05 * usable  # the estimate's error
    assert more > usable
    assert estimate(case, case, memory) == memory.total
    assert most_frames(case, memory, memory.weights) == 0
    hybrid = Hybrid(high_frames=2, low_frames=6, high_edge=32, low_edge=16)
    of_two_sizes = with_frames(dataclasses.replace(case, frames=8, hybrid=hybrid), 16)
    assert (of_two_sizes.hybrid.high_frames, of_two_sizes.hybrid.low_frames) == (4, 12)


def test_long_prompts_take_no_more_beside_their_caches(case, monkeypatch):
    """64 and 1,024 frames in chunks, by the programs that answer; and the frames that then fit."""
    whole = memory_of(case)
    monkeypatch.setattr(chunked_prefill, "LONG", 256)
    monkeypatch.setattr(chunked_prefill, "CHUNK", 128)
    tiles = functools.partial(kv_cache.grouped_attention, most_scores=2**18)
    monkeypatch.setattr(kv_cache, "grouped_attention", tiles)
    model = dataclasses.replace(case.model, max_position=4096)
    short, long = (dataclasses.replace(case, model=model, frames=n) for n in (64, 1024))
    memory, more = memory_of(short), memory_of(long)
    assert 0 < memory.activations == more.activations < whole.activations
    assert more.prefix > 15 * memory.prefix
    usable = (memory.total + more.total) // 2
    frames = most_frames(dataclasses.replace(short, frames=16), whole, usable)
    fitting, beyond = (memory_of(with_frames(short, n)).total for n in (frames, frames + 32))
    assert fitting <= usable < beyond


def test_advice_fits_where_the_case_does_not(case):
    unmerged = dataclasses.replace(case, merging=False, batch=4)
    needs = memory_of(unmerged).total
    int8 = memory_of(dataclasses.replace(unmerged, weights="int8")).total
    report = plan([unmerged], [size / USABLE / GIB for size in (needs, needs - 1, int8 - 1)])
    (row,) = report["weights"]
    assert row["fits"] == [True, False, False]
    nothing, little, much = row["advice"]
    assert nothing == []
    assert [line.split(":")[0] for line in little[:2]] == ["--weights int8", "--weights int4"]
    assert "--weights int8" not in [line.split(":")[0] for line in much]
    assert any(line.startswith("--batch ") for line in much)
    assert any(line.startswith("--frames ") for line in much)


def test_the_command_tells_what_fits(config_dir, tmp_path, capsys):
    file = tmp_path / "plan.json"
    words = ["--config", f"{config_dir}/tiny.py", "--frames", "8", "--weights", "int8"]
    cards = ["--no-merging", "--memory", "24,0.001", "--json", str(file)]
    assert main(["plan", "--inference", *words, *cards]) == 1
    report = json.loads(file.read_text())
    assert [card["memory"] for card in report["cards"]] == [24, 0.001]
    assert report["weights"][0]["fits"] == [True, False]
    shown = capsys.readouterr().out
    assert "8 frames, 48 px" in shown
    assert "NO; no frame fits" in shown
    with pytest.raises(SystemExit):
        main(["plan", "--inference"])
    assert "--inference needs --config or --checkpoint" in capsys.readouterr().err
