"""Two real processes of two fake devices each, on one mesh, beside one device."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import one_mesh
import pytest
import shapes
from tests.tools.recaption.conftest import Server, completion, send

from elva_jax.checkpoints.save import save_weights
from elva_jax.evaluation.weights import weights_hash


@pytest.fixture(scope="module")
def model():
    return shapes.small_model()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return shapes.write(tmp_path_factory.mktemp("shapes") / "root")


@pytest.fixture(scope="module")
def folder(model, root, tmp_path_factory):
    """The model as an exported folder and as a run, and the videos as two processes see them."""
    folder = tmp_path_factory.mktemp("one_mesh")
    model.save_pretrained(folder / "exported")
    save_weights(folder / "run" / "video", {"elva": model.params}, model.config, "video")
    model.tokenizer.save_pretrained(folder / "run" / "tokenizer")
    for index in range(2):
        shutil.copytree(root, folder / f"root{index}")
    (folder / "root1" / "3.mp4").write_bytes(b"junk")
    record = {"question": "What color is the square?", "answer": "red"}
    lines = [json.dumps(record | {"video": f"{number}.mp4"}) for number in range(2)]
    (folder / "own.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def ran(root, folder):
    """What each of the processes printed, its last line, its exit status; asked of the judge."""
    server = Server()
    reply = completion('{"pred": "yes", "score": 4}')
    server.answer = lambda handler, *_: send(handler, 200, reply)
    flags = f"--xla_force_host_platform_device_count=2 {os.environ['XLA_FLAGS']}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = str(Path(__file__).with_name("one_mesh.py"))
    started = [
        subprocess.Popen(
            [sys.executable, script, str(index), str(port), str(root), str(folder), server.url],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=550) for process in started]
    server.close()
    found = []
    for (text, errors), process in zip(outputs, started, strict=True):
        lines = [line for line in text.splitlines() if line.startswith("{")]  # gloo prints, too
        assert len(lines) == 1, errors[-3000:]
        said = json.loads(lines[0]) | {"asked": len(server.requests)}
        found.append((said, errors.splitlines()[-1], process.returncode))
    return found


def test_the_same_answers_as_on_one_device(model, ran):
    """Tensor crosses the processes: prefill, merging, decoding, scoring, chunks and chat."""
    alone = json.loads(json.dumps(one_mesh.answers(model)))
    for found, *_ in ran:
        for there in (found["answers"], found["chunked"]):
            for name in ("generate", "stream", "chat", "survivors"):
                assert there[name] == alone[name]
            np.testing.assert_allclose(there["score"], alone["score"], rtol=1e-4)
            np.testing.assert_allclose(there["hidden"], alone["hidden"], rtol=1e-4)


def test_weights_are_split_over_the_processes_and_have_one_name(model, ran):
    for found, *_ in ran:
        own, whole = found["held"]
        assert 0.4 * whole < own < 0.7 * whole  # the patch embedding and the norms are not split
        assert found["equal"]  # a run and an exported folder
        assert found["hash"] == weights_hash(model.params)


def test_a_resumed_evaluation_asks_nothing_twice(model, root, folder, ran):
    (first, *_), (second, *_) = ran
    assert [first["interrupted"], second["interrupted"]] == ["itself", "told"]
    assert 8 <= first["before"] < 23
    assert not (folder / "only the first one writes").exists()
    lines = [
        json.loads(line)["key"]
        for path in (folder / "scores").glob("*/answers/*/answers.jsonl")
        for line in path.read_text().splitlines()[1:]
    ]
    assert len(set(lines)) == len(lines) == 23
    words, letters = one_mesh.said(one_mesh.ask(model, root))
    for found in (first, second):
        assert found["said"][0] == words
        np.testing.assert_allclose(found["said"][1], letters, rtol=1e-4)
    assert first["intervals"]
    assert not second["intervals"]


def test_the_first_process_alone_asks_the_judge(ran):
    (first, *_), (second, *_) = ran
    assert (first["main"], second["main"]) == ("judge accuracy", "exact match")
    assert 2 <= first["asked"] <= 3  # the check, and answers, of which equal ones are sent once


def test_what_one_process_cannot_do_ends_all(ran):
    (first, line, status), (second, last, other) = ran
    for found in (first, second):
        assert "root1/3.mp4" in found["disk"]
        assert "another process of the mesh could read it" in found["disk"]
        assert "the questions: the processes of the mesh differ" in found["other"]
        assert "requests come to one" in found["serve"]
    assert (line, status) == ("the disk is gone", 1)
    assert (last, other) == ("process 0 has ended: the disk is gone", 1)
