"""One of two processes on one mesh: `python one_mesh.py INDEX PORT ROOT FOLDER JUDGE`.

It answers everything that test_one_mesh.py compares with one device, and prints it as JSON.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import shapes
from jax.sharding import Mesh

import elva_jax
from elva_jax import testing
from elva_jax.errors import ConfigError, StartError
from elva_jax.evaluation.judge.config import JudgeConfig
from elva_jax.evaluation.models import open_elva
from elva_jax.evaluation.runner.run import evaluate_benchmarks
from elva_jax.evaluation.runner.settings import BenchmarkConfig
from elva_jax.inference.continuous import ContinuousEngine
from elva_jax.inference.media import Request
from elva_jax.parallel import distributed
from elva_jax.parallel.host_arrays import to_host
from elva_jax.parallel.launchers import detect_process
from elva_jax.parallel.lockstep import lockstep_of
from elva_jax.utils import signals

SMALL = BenchmarkConfig(batch_size=4, answers=("generated", "letter"))


def answers(model):
    """What the model says: written, streamed, scored, in a conversation, and its hidden states."""
    video, other = testing.tiny_video(), testing.tiny_video(color="blue", seed=3)
    requests = [Request(video, "What moves?"), Request(other, "Where to?"), Request(None, "And?")]
    chat = model.chat(video, max_new_tokens=4)
    hidden = model.hidden_states(video, "What moves?", layers=[2])
    return {
        "generate": [a.tokens for a in model.generate(requests, max_new_tokens=6)],
        "stream": "".join(model.stream(video, "What moves?", max_new_tokens=6)),
        "chat": [chat.ask(text).tokens for text in ("What moves?", "And now?")],
        "score": [s.total for s in model.score(video, "What color?", ["red", "blue square"])],
        "hidden": float(np.abs(hidden.states[2]).sum()),
        "survivors": hidden.block(2).layout.length,
    }


def held(model):
    """Bytes of the weights on the devices of this process, and of all weights."""
    leaves = jax.tree.leaves(model.engine.weights)
    own = {(id(x), str(s.index)): s.data.nbytes for x in leaves for s in x.addressable_shards}
    return sum(own.values()), sum(leaf.nbytes for leaf in leaves)


def said(evaluation):
    """The responses of an evaluation."""
    responses = [grade.response for grade in evaluation.grades["generated"]]
    words = [[r.question.key, r.text, r.finished, list(r.tokens), r.error] for r in responses]
    return words, [s.total for r in responses for s in r.letters]


def ask(model, root, **more):
    """Asks the benchmark."""
    return evaluate_benchmarks(model, [shapes.BENCHMARK], root, SMALL, **more)[0]


def reason(action, kind):
    """The message of the error that an action raises."""
    try:
        action()
    except kind as error:
        return str(error)
    return "no error"


def main():
    index, port, root, folder = int(sys.argv[1]), *sys.argv[2:3], *map(Path, sys.argv[3:5])
    process = detect_process({}, coordinator=f"127.0.0.1:{port}", num_processes=2, process_id=index)
    distributed.initialize(process, {}, start_timeout=200)
    devices = np.array(jax.devices()).reshape(2, 2)
    mesh = Mesh(devices.T, ("data", "tensor"))  # tensor crosses processes
    out = {}
    model = elva_jax.load(folder / "exported", mesh=mesh)
    out["held"] = held(model)
    out["answers"] = answers(model)
    chunked, origin = open_elva(folder / "run" / "video", mesh, prefill_chunk=32)
    out["hash"] = origin["weights_hash"]
    pairs = zip(*(jax.tree.leaves(m.engine.weights) for m in (model, chunked)), strict=True)
    out["equal"] = all(np.array_equal(*to_host(pair)) for pair in pairs)
    out["chunked"] = answers(chunked)

    model = elva_jax.load(folder / "exported", mesh=Mesh(devices, ("data", "tensor")))  # data does

    def stop(name, done, total):
        if done >= 8 and index == 0:
            raise KeyboardInterrupt

    scores = folder / "scores" if index == 0 else folder / "only the first one writes"
    try:
        ask(model, root, output=scores, progress=stop)
    except signals.Interrupted:
        out["interrupted"] = "told"
    except KeyboardInterrupt:
        out["interrupted"] = "itself"
    shares = (folder / "scores").glob("*/answers/*/answers.jsonl")
    out["before"] = sum(path.read_text().count("\n") - 1 for path in shares)
    evaluation = ask(model, root, output=scores)
    out["said"], out["intervals"] = (
        said(evaluation),
        bool(np.isfinite(evaluation.scores["generated"].main.low)),
    )
    own = elva_jax.load_own(folder / "own.jsonl", root)
    judge = JudgeConfig(endpoint=sys.argv[5], model="gpt")
    config = BenchmarkConfig(max_new_tokens=6, judge=judge)
    out["main"] = evaluate_benchmarks(model, [own], config=config)[0].scores["generated"].main.name
    differs = folder / f"root{index}"
    out["disk"] = reason(lambda: ask(model, differs), StartError)
    out["other"] = reason(lambda: model.answer(None, f"I am {index}"), ConfigError)
    out["serve"] = reason(lambda: ContinuousEngine(model), ConfigError)
    print(json.dumps(out), flush=True)
    with lockstep_of(mesh).together():
        if index == 0:
            raise StartError("the disk is gone")
        model.answer(None, "Who are you?")


if __name__ == "__main__":
    try:
        main()
    except StartError as failure:
        print(failure, file=sys.stderr, flush=True)
        distributed.exit_if_distributed(1)
