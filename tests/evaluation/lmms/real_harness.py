"""The plug-in in the real lmms-eval: run by launch/test_lmms_eval.sh in an environment that has it.

    python real_harness.py WORK                 every check; the status is the number of failures
    python real_harness.py run WORK OUT --cache DIR [--then MODEL]
                                                by lmms-eval's Python API: without its many tasks

References and right options are made from the model's own answers, asked one by one, so that the
expected figures are neither 0 nor 1.
"""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).parent
NEW = 6
OPTIONS = ["red", "green", "blue"]
DOCS = 12
GONE = 10  # the document whose video is missing
WAITING = 9  # the document at which a run is killed
failures = 0


def check(name, found, wanted):
    """Prints one line, and counts what is not equal."""
    global failures
    failures += found != wanted
    print(f"{'ok  ' if found == wanted else 'FAIL'} {name}", flush=True)
    if found != wanted:
        print(f"     found  {found}\n     wanted {wanted}", flush=True)


def write_docs(work):
    """Clips, an image and the questions; returns the documents without references."""
    from PIL import Image

    from elva_jax import testing

    clips = [
        str(testing.write_video(work / f"{color}.mp4", testing.tiny_video(8, color=color)))
        for color in ("red", "green", "blue")
    ]
    Image.fromarray(testing.tiny_video(1)[0]).save(work / "still.png")
    docs = []
    for index in range(DOCS):
        question = f"{'And now? ' * (index % 2)}What moves? {index}"
        video = clips[index % 3]
        docs.append({"doc": index, "question": question, "video": video, "start": 0.0, "end": 0.0})
    docs[2]["video"] = ""
    docs[3]["video"] = str(work / "still.png")
    docs[4] |= {"start": 0.5, "end": 1.5}
    docs[GONE]["video"] = str(work / "gone.mp4")
    return docs


def own_answers(model, docs):
    """Answers, losses and second answers of the model, one question at a time."""
    answers, losses, rounds = [], [], []
    for doc in docs:
        readable = doc["video"] and Path(doc["video"]).exists()
        span = (doc["start"], doc["end"] or None)
        media = model.read_media(doc["video"], span=span) if readable else None
        answer = model.answer(media, doc["question"], max_new_tokens=NEW)
        answers.append("" if doc["doc"] == GONE else answer)
        losses.append([-one.total for one in model.score(media, doc["question"], OPTIONS)])
        then = [model.answer(media, f"Then? {answer}", max_new_tokens=NEW)]
        rounds.append([answer, *(then if doc["doc"] else [])])
    return answers, losses, rounds


def prepare(work):
    """The folder of tasks, two models, and what the model answers by itself."""
    from elva_jax import testing

    tasks = work / "tasks"
    shutil.copytree(HERE / "local_tasks", tasks)
    model, other = testing.tiny_model(), testing.tiny_model(seed=1)
    model.save_pretrained(work / "model")
    other.save_pretrained(work / "other")
    docs = write_docs(work)
    answers, losses, rounds = own_answers(model, docs)
    for doc, answer, loss in zip(docs, answers, losses, strict=True):
        right = min(range(len(OPTIONS)), key=loss.__getitem__)
        even = doc["doc"] % 2 == 0
        doc |= {
            "reference": answer if even else "something else",
            "options": OPTIONS,
            "answer": right if doc["doc"] % 3 else (right + 1) % len(OPTIONS),
        }
    (tasks / "docs.json").write_text(json.dumps(docs))
    exact = write_msvd(work, model, docs)
    others, other_losses, _ = own_answers(other, docs)
    return {
        "docs": docs,
        "msvd": exact,
        "rounds": rounds,
        "model": answers,
        "other": others,
        "accuracy": {"model": accuracy_of(docs, losses), "other": accuracy_of(docs, other_losses)},
    }


def write_msvd(work, model, docs):
    """A folder of MSVD-QA with three questions; returns the model's exact matches among them."""
    from elva_jax.evaluation.answers import exact_match

    root = work / "msvd"
    (root / "videos").mkdir(parents=True)
    questions, answers, right = [], [], []
    for doc in docs[5:8]:
        shutil.copy(doc["video"], root / "videos" / f"{doc['doc']}.mp4")
        name, text = str(doc["doc"]), f"{doc['question']}?\nAnswer with a word or a short phrase."
        said = model.answer(doc["video"], text, max_new_tokens=NEW)
        answer = said if doc["doc"] % 2 else "something else"
        questions.append({"video_name": name, "question_id": name, "question": doc["question"]})
        answers.append({"question_id": name, "answer": answer})
        right.append(exact_match(said, answer))
    (root / "test_q.json").write_text(json.dumps(questions))
    (root / "test_a.json").write_text(json.dumps(answers))
    found = subprocess.check_output([sys.executable, "-m", "elva_jax.evaluation.lmms.tasks"])
    shutil.copytree(found.decode().strip(), work / "tasks" / "elva")
    return sum(right) / len(right)


class Judge(http.server.BaseHTTPRequestHandler):
    """A judge that finds everything right."""

    def do_POST(self):
        """Answers one request."""
        self.rfile.read(int(self.headers["Content-Length"]))
        message = {"content": "{'pred': 'yes', 'score': 4}"}
        reply = {"choices": [{"message": message, "finish_reason": "stop"}]}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(reply).encode())

    def log_message(self, *args):
        """Says nothing."""


def environment(work, **more):
    """The environment of every run: offline, with one cache of compiled programs."""
    return os.environ | {
        "HF_HOME": str(work / "hf"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        **more,
    }


def free_port():
    """A port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start(work, log, command, **more):
    """Starts a process whose output goes to a file."""
    with (work / log).open("w") as file:
        return subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=environment(work, **more),
            cwd=work,
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def harness(work, out, tasks, *flags, more=""):
    """The command line of lmms-eval itself."""
    given = f"pretrained={work / 'model'},dtype=float32{more}"
    return [
        *("-m", "lmms_eval", "--model", "elva", "--model_args", given, "--tasks", tasks),
        *("--include_path", work / "tasks", "--output_path", work / out, "--log_samples"),
        *("--verbosity", "DEBUG", *flags),
    ]


def run(work, out, cache):
    """Both kinds of tasks by the Python API; writes results and samples to a file."""
    from lmms_eval import evaluator
    from lmms_eval.tasks import TaskManager

    manager = TaskManager(
        "WARNING", include_path=str(work / "tasks"), include_defaults=False, model_name="elva"
    )
    results = evaluator.simple_evaluate(
        model="elva",
        model_args=f"pretrained={work / 'model'},batch=1",
        tasks=["local_open", "local_choice"],  # the last one is asked first
        task_manager=manager,
        use_cache=cache,
        log_samples=True,
        bootstrap_iters=0,
        force_simple=True,
    )
    (work / out).write_text(json.dumps(results, default=str))


def read_results(work, out):
    """The results and samples that the command line has written."""
    (results,) = (work / out).rglob("*_results.json")
    samples = {}
    for file in (work / out).rglob("*_samples_*.jsonl"):
        task = file.stem.partition("_samples_")[2]
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        samples[task] = sorted(rows, key=lambda row: row["doc_id"])
    return json.loads(results.read_text()), samples


def check_command_line(work, known):
    """Generation and rounds by chat messages, on two devices; likelihoods by prompts, two ranks."""
    docs, answers, rounds = known["docs"], known["model"], known["rounds"]
    flags = ("--limit", DOCS - 1, "--batch_size", "auto")
    judge = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=judge.serve_forever, daemon=True).start()
    flags = (*flags, "--gen_kwargs", f"max_new_tokens={NEW}")
    tasks = "local_open,local_rounds,msvd_qa"
    command = harness(work, "chat", tasks, *flags, more=",mesh=tensor:2")
    more = {
        "MSVD_QA_ROOT": str(work / "msvd"),
        "OPENAI_API_URL": f"http://127.0.0.1:{judge.server_port}/v1/chat/completions",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    chat = start(work, "chat.log", command, **more)
    ranks = ("-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", free_port())
    all_three = "local_open,local_choice,local_rounds"
    flags = ("--force_simple", "--batch_size", "4")
    command = harness(work, "simple", all_three, *flags)
    simple = start(work, "simple.log", [*ranks, *command])
    check("the command lines end well", (chat.wait(), simple.wait()), (0, 0))
    for out, count in (("chat", DOCS - 1), ("simple", DOCS)):
        results, samples = read_results(work, out)
        scores, said = results["results"], [row["filtered_resps"] for row in samples["local_open"]]
        check(f"{out}: answers are our own", said, answers[:count])
        found = [row["filtered_resps"] for row in samples["local_rounds"]]
        check(f"{out}: rounds are our own", found, rounds[:count])
        same = [float(answer == doc["reference"]) for answer, doc in zip(said, docs, strict=False)]
        check(f"{out}: the score", scores["local_open"]["same,none"], sum(same) / count)
        tokens = [row["token_counts"][0]["input_tokens"] > 0 for row in samples["local_open"]]
        check(f"{out}: tokens are counted", tokens, [n != GONE for n in range(count)])
        backend = results["config"]["model_backend"]
        check(f"{out}: the weights stand in the results", "@step0-" in backend, True)
        check(f"{out}: refused requests", results["throughput"]["avg_refused_requests"] > 0, True)
        log = (work / f"{out}.log").read_text()
        for text in (
            "1 question(s) could not be asked and have the answer ''",
            "generation_kwargs that do not apply are ignored: image_aspect_ratio",
            "|local_open  |",
        ):
            check(f"{out}: the log has {text!r}", text in log, True)
    judge.shutdown()
    accuracy = results["results"]["local_choice"]["acc,none"]
    check("likelihood: the accuracy", accuracy, known["accuracy"]["model"])
    names = ("exact_match", "judge_accuracy", "judge_score", "judge_failures")
    msvd = read_results(work, "chat")[0]["results"]["msvd_qa"]
    judged = [msvd[f"{name},none"] for name in names]
    check("MSVD-QA: exact match, and the judge's", judged, [known["msvd"], 100.0, 4.0, 0])
    named = {path.parent.name for path in (work / "chat").rglob("*_results.json")}
    check("the folder of results is named for the model", len(named) == 1 and named != {""}, True)


def check_resume(work, known):
    """A killed run continues; the same weights are not asked again, other weights are."""
    cache, docs = work / "cache", known["docs"]
    base = [__file__, "run", work, "resumed.json", "--cache", cache]
    wait = {"LMMS_CACHE_RUN_ID": "a", "ELVA_TEST_WAIT": docs[WAITING]["question"]}
    killed = start(work, "killed.log", base, **wait)
    log, deadline = cache / "runs" / "a" / "rank_0.audit.jsonl", time.monotonic() + 120
    scored = len(OPTIONS) * DOCS
    while killed.poll() is None and time.monotonic() < deadline:
        if log.exists() and len(log.read_text().splitlines()) >= scored + 4:
            break
        time.sleep(0.2)
    killed.send_signal(signal.SIGKILL)
    check("the run was killed", killed.wait(), -signal.SIGKILL)
    saved = len(log.read_text().splitlines()) - scored
    check("answers before the kill were saved", 0 < saved < DOCS, True)
    resumed = start(work, "resumed.log", [*base, "--then", "other"], LMMS_CACHE_RUN_ID="a")
    check("the resumed run ends well", resumed.wait(), 0)
    accuracy = known["accuracy"]
    for name, wanted, model in (
        ("", {"generate_until": DOCS - saved}, "model"),
        ("-again", {"generate_until": 1}, "model"),  # an empty answer is not stored
        ("-other", {"loglikelihood": scored, "generate_until": DOCS}, "other"),
    ):
        results = json.loads((work / f"resumed{name}.json").read_text())
        requests = sum(wanted.values()) / len(wanted)  # lmms-eval writes the mean over their kinds
        check(f"resumed{name}: requests", results["throughput"]["avg_requests"], requests)
        check(f"resumed{name}: answers", answers_of(results), known[model])
        found = results["results"]["local_choice"]["acc,none"]
        check(f"resumed{name}: accuracy by likelihood", found, accuracy[model])
    text = (work / "resumed.log").read_text()
    check("other weights are noticed", "holds answers of other weights (step0-" in text, True)


def check_server(work, known):
    """lmms-eval's own model "openai" asks `elva serve`, with the paths of videos."""
    from elva_jax import testing

    model, wanted = testing.tiny_model(), []
    model.save_pretrained(work / "served_model")  # the other one has other weights by now
    for doc in known["docs"]:
        whole = doc["video"].endswith(".mp4") and Path(doc["video"]).exists() and not doc["end"]
        media = doc["video"] if whole else None
        wanted.append(model.answer(media, doc["question"], max_new_tokens=NEW, frames=3))
    limits = "--port 0 --context 256 --question 64 --max-new-tokens 16 --slots 4 --warm-up off"
    command = ["-m", "elva_jax.cli", "serve", "--checkpoint", work / "served_model"]
    command += ["--media-dir", work]
    server = start(work, "serve.log", [*command, *limits.split()])
    try:
        deadline, found = time.monotonic() + 120, None
        while not found and server.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
            found = re.search(r"http\S+/v1", (work / "serve.log").read_text())
        given = f"model_version=elva,base_url={found[0]},api_key=none,pass_video_url=True"
        command = ["-m", "lmms_eval", "--model", "openai", "--tasks", "local_server"]
        command += ["--model_args", f"{given},max_frames_num=3,num_concurrent=8"]
        command += ["--include_path", work / "tasks", "--output_path", work / "served"]
        done = start(work, "served.log", [*command, "--log_samples"])
        check("lmms-eval ends well", done.wait(), 0)
        _, samples = read_results(work, "served")
        said = [row["filtered_resps"] for row in samples["local_server"]]
        check("served: answers are our own", said, wanted)
    finally:
        server.send_signal(signal.SIGTERM)
    check("the server ends well", server.wait(), 0)


def answers_of(results):
    """The answers to local_open, in order."""
    rows = sorted(results["samples"]["local_open"], key=lambda row: row["doc_id"])
    return [row["filtered_resps"][0] for row in rows]


def accuracy_of(docs, losses):
    """The share of documents whose option with the least loss is the right one."""
    least = [min(range(len(OPTIONS)), key=loss.__getitem__) for loss in losses]
    return sum(doc["answer"] == one for doc, one in zip(docs, least, strict=True)) / len(docs)


def main(args):
    """Runs the checks, or one run."""
    if args[0] == "run":
        work, out, cache = Path(args[1]), args[2], args[args.index("--cache") + 1]
        run(work, out, cache)
        if "--then" in args:
            run(work, out.replace(".json", "-again.json"), cache)
            shutil.rmtree(work / "model")
            shutil.copytree(work / args[args.index("--then") + 1], work / "model")
            run(work, out.replace(".json", "-other.json"), cache)
        return 0
    work, begun = Path(args[0]).absolute(), time.monotonic()
    work.mkdir(parents=True, exist_ok=True)
    known = prepare(work)
    for part in (check_command_line, check_resume, check_server):
        print(f"-- {part.__doc__} ({time.monotonic() - begun:.0f} s)", flush=True)
        part(work, known)
    print(f"{failures} failure(s), {time.monotonic() - begun:.0f} s", flush=True)
    return failures


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
