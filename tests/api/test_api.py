"""The public API: its names, what importing it costs, its silence, and a mesh of devices."""

import inspect
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import elva_jax
from elva_jax import testing
from elva_jax.checkpoints.save import save_weights

REPO = Path(__file__).parents[2]
QUESTION = "What color is the square?"


def python(code, *words, **env):
    """What a fresh process prints, and what it complains about."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(REPO)} | env,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, done.stderr


def test_importing_takes_no_time_and_no_jax():
    code = """
import sys, time
start = time.process_time()
import elva_jax
seconds = time.process_time() - start
print(seconds, sorted({"jax", "numpy", "flax", "transformers", "av"} & set(sys.modules)))
"""
    seconds, modules = python(code)[0].split(maxsplit=1)
    assert float(seconds) < 0.3
    assert modules.strip() == "[]"


def test_every_name_is_there_and_documented():
    assert set(elva_jax.__all__) <= set(dir(elva_jax))
    for name in elva_jax.__all__:
        value = getattr(elva_jax, name)
        assert inspect.getdoc(value), name
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        elva_jax.lode  # noqa: B018


def test_names_for_type_checkers_are_the_lazy_ones():
    source = inspect.getsource(elva_jax).split("if TYPE_CHECKING:")[1].split("__version__")[0]
    for name, where in elva_jax._EXPORTS.items():
        module, _, attribute = where.partition(":")
        line = f"from elva_jax.{module} import" if attribute else "import"
        assert any(name in text and line in text for text in source.splitlines()), name


def test_a_saved_model_is_the_same_one(model, run_dir, tmp_path):
    model.save_pretrained(tmp_path / "out")
    video = testing.tiny_video()
    expected = model.score(video, QUESTION, ["red", "blue"])
    for path in (tmp_path / "out", run_dir, run_dir / "video"):
        again = elva_jax.load(path)
        assert again.score(video, QUESTION, ["red", "blue"]) == expected
        jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    assert elva_jax.load(run_dir, stage="video").stage == "video"
    with pytest.raises(elva_jax.errors.ConfigError, match="no stage 'sft'; the run has video"):
        elva_jax.load(run_dir, stage="sft")
    half = elva_jax.load(run_dir, dtype="bfloat16")
    assert half.params["decoder"]["layers"]["q_proj"]["kernel"].dtype == "bfloat16"
    (score, _) = half.score(video, QUESTION, ["red", "blue"])
    assert score.total == pytest.approx(expected[0].total, rel=0.05)


def test_a_batch_answers_as_each_request_alone(model, tmp_path):
    video = testing.tiny_video(color="blue")
    path = testing.write_video(tmp_path / "clip.mp4", video)
    requests = [
        elva_jax.Request(video, QUESTION),
        elva_jax.Request(None, "Who are you?"),
        elva_jax.Request(
            [path, path], ["Is", {"type": "video"}, "the same as", {"type": "video"}, "?"]
        ),
        elva_jax.Request(str(path), "What moves?"),
    ]
    answers = model.generate(requests, max_new_tokens=6)
    assert len({answer.text for answer in answers}) > 1
    for request, answer in zip(requests, answers, strict=True):
        alone = model.answer(request.media, request.prompt, max_new_tokens=6)
        assert alone == answer.text
    assert model.generate([]) == []


def test_a_chat_starts_with_its_media_and_takes_more(model):
    video, other = testing.tiny_video(), testing.tiny_video(2, color="blue")
    chat = model.chat(video, max_new_tokens=4)
    first = chat.ask(QUESTION)
    assert first.text == model.answer(video, QUESTION, max_new_tokens=4)
    later = "".join(chat.stream("And here?", other))
    without = model.chat(video, max_new_tokens=4)
    without.ask(QUESTION)
    assert later != without.ask("And here?").text


QUIET = """
import sys
import elva_jax
from elva_jax import testing
model = elva_jax.load(sys.argv[1])
model.answer(testing.tiny_video(), "What moves?", max_new_tokens=4)
try:
    elva_jax.load(sys.argv[1] + "/nothing")
except elva_jax.errors.CheckpointError as error:
    assert "nothing" in str(error)
else:
    raise AssertionError
model.answer(testing.tiny_video(9), "What moves? " * 60, max_new_tokens=4)  # RoPE is scaled
assert not {"grain", "tensorflow_datasets"} & set(sys.modules), "answers need no library of data"
"""


def test_the_library_prints_nothing(run_dir):
    assert python(QUIET, run_dir) == ("", "")


def test_a_mesh_of_devices_answers_as_one_device(tmp_path):
    """A run on three axes, an exported folder on two, and int4 weights, against one device.

    One merging layer of two, by similarity and ratio, needs fewer programs than two of three.
    """
    merging = {"merge_policies": ("both",), "merge_thresholds": (0.6,), "merge_ratios": (0.6,)}
    model = testing.tiny_model(num_layers=2, merge_layers=(1,), **merging)
    out = tmp_path / "out"
    model.save_pretrained(out)
    # Factors that are 0 change nothing, but they are merged into sharded matrices.
    layers = dict(model.params["decoder"]["layers"])
    layers["q_proj_lora"] = {"a": np.ones((2, 32, 2), np.float32), "b": np.zeros((2, 2, 32))}
    params = model.params | {"decoder": model.params["decoder"] | {"layers": layers}}
    save_weights(tmp_path / "lora" / "video", {"elva": params}, model.config, "video")
    model.tokenizer.save_pretrained(tmp_path / "lora" / "tokenizer")
    cases = [
        (str(tmp_path / "lora" / "video"), [2, 2, 2], ["tensor", "fsdp", "data"], None),
        (str(out), [4, 2], ["tensor", "data"], None),
        (str(out), [2, 2, 2], ["tensor", "fsdp", "data"], "int4"),
    ]
    script = Path(__file__).with_name("on_mesh.py")
    flags = f"--xla_force_host_platform_device_count=8 {os.environ.get('XLA_FLAGS', '')}"
    environment = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    clip = str(tmp_path / "clip.mp4")
    testing.write_video(clip, testing.tiny_video())
    parts = [{"type": "video_url", "video_url": {"url": clip}}, {"type": "text", "text": QUESTION}]
    body = {"messages": [{"role": "user", "content": parts}], "temperature": 1.5, "seed": 7}
    body |= {"max_tokens": 8, "model": "elva"}
    printed, err = python(script.read_text(), json.dumps(cases), json.dumps(body), **environment)
    assert err == ""
    facts_of = runpy.run_path(str(script))["facts"]
    one = facts_of(model, chats=True)
    memory, *found = map(json.loads, printed.splitlines())
    (short, few), (long, many) = memory["flat"]
    assert long[0] > 3 * short[0], "nothing to keep flat"
    assert long[-1] < long[0], "nothing merged"
    assert few == many > 0
    assert memory["host"] == [7]
    drawn = elva_jax.Sampling(temperature=1.5, seed=7)  # which depends on every logit
    assert memory["served"] == [0, model.answer(clip, QUESTION, max_new_tokens=8, sampling=drawn)]
    assert [facts["part"] for facts in (one, *found)] == [1, 1 / 4, 1 / 4, 1 / 4]
    # Rows split over data x fsdp, and two key-value heads over two devices, but not over four.
    assert [facts["cache"] for facts in (one, *found)] == [[1], [1 / 8], [1 / 2], [1 / 8]]
    # The rows and heads of one device go to cuDNN's kernel.
    kernels = [facts["cuda"] for facts in found]
    assert kernels == [[[1, 2048, 2, 8]], [[2, 2048, 4, 8]], [[1, 2048, 2, 8]]]
    assert found[0]["chat"] == one["chat"]
    int4 = facts_of(elva_jax.load(out, weights="int4"), chats=False)
    for facts, expected in zip(found, (one, one, int4), strict=True):
        assert (facts["tokens"], facts["merged"]) == (expected["tokens"], expected["merged"])
        np.testing.assert_allclose(facts["scores"], expected["scores"], rtol=1e-5)


def test_a_mesh_axis_of_another_name_is_refused(run_dir):
    mesh = jax.make_mesh((1,), ("model",))
    with pytest.raises(elva_jax.errors.ConfigError, match="no such axis 'model'; use data, fsdp"):
        elva_jax.load(run_dir, mesh=mesh)
