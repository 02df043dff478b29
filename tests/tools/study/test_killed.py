"""Studies whose processes are killed: queues of three hosts.

Hosts are processes that call themselves another machine, so that they see each other's locks as
those of any host that shares the folder: by signs of life alone.
"""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

from elva_jax.tools.study import Study, Variant, queue
from elva_jax.tools.study.jobs import RESULT, jobs_of
from elva_jax.utils import owner
from elva_jax.utils.owner import NAME

ROOT = Path(__file__).parents[3]


def wait_until(condition, process=None):
    while not condition():
        assert process is None or process.poll() is None
        time.sleep(0.02)


# A training of the next test: Python runs it before `elva train` would begin.
TRAINING = """
import os, sys, time

def log(what):
    with open(os.environ["TRAINED"], "a") as file:
        print(what, sys.orig_argv[-1], os.getpid(), file=file)

if "elva_jax.cli" in sys.orig_argv:
    log("begin")
    time.sleep(600 if os.environ["HOST"] == "a" and "/two/seed-0/" in sys.orig_argv[-1] else 0.1)
    log("end")
    os._exit(0)
"""


def work_as(host, jobs):
    """A queue whose locks are those of another machine."""
    owner.STALE_SECONDS, owner.BEAT_SECONDS, queue.WAIT_SECONDS = 5.0, 0.2, 0.1
    owner._machine = lambda: host
    os.environ["HOST"] = host
    queue.work(jobs, queue.Stop(None), lambda _: None)


def test_hosts_share_a_study_and_take_over_a_dead_one(tmp_path):
    """Every job is trained once, and that of the host that died is begun by one of the others."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(TRAINING)
    log = tmp_path / "trained"
    log.touch()
    environment = {"PYTHONPATH": str(tmp_path / "site"), "TRAINED": str(log)}
    trained = Variant(measured=False, environment=environment)
    variants = {"one": trained, "two": trained, "three": trained, "measured": Variant()}
    study = Study(config=f"{ROOT}/tests/training/tiny_run.py:sft", variants=variants)
    jobs = [job for job in jobs_of(study, tmp_path / "out", 3) if job.evaluate is None]
    hangs = next(job for job in jobs if job.label == "two, seed 0")

    def lines(what):
        found = [line.split() for line in log.read_text().splitlines()]
        return [line[1:] for line in found if line[0] == what]

    def begun():
        return [folder for folder, _ in lines("begin")]

    context = multiprocessing.get_context("fork")
    hosts = {name: context.Process(target=work_as, args=(name, jobs)) for name in "abc"}
    hosts["a"].start()
    wait_until(lambda: str(hangs.run) in begun())
    hosts["b"].start()
    hosts["c"].start()
    wait_until(lambda: len(lines("end")) == len(jobs) - 1)
    time.sleep(1.0)  # they look for a sign of life of the one that is left, and find it
    assert begun().count(str(hangs.run)) == 1
    ((_, training),) = (line for line in lines("begin") if line[0] == str(hangs.run))
    os.kill(hosts["a"].pid, signal.SIGKILL)
    os.kill(int(training), signal.SIGKILL)
    for host in hosts.values():
        host.join()
    assert [hosts[name].exitcode for name in "abc"] == [-signal.SIGKILL, 0, 0]
    assert sorted(begun()) == sorted([*(str(job.run) for job in jobs), str(hangs.run)])
    assert sorted(folder for folder, _ in lines("end")) == sorted(str(job.run) for job in jobs)
    assert all(job.done for job in jobs)
    parts = json.loads((hangs.folder / RESULT).read_text())["cost"]
    assert [part.get("killed", False) for part in parts] == [True, False]
    assert not list((tmp_path / "out").rglob(f"{NAME}*"))
