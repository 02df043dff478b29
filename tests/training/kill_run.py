"""Kills toy runs with SIGKILL at random moments, and compares them with an uninterrupted run.

Run it by hand; it takes about 15 minutes on one core. The report is a Markdown table:

  PYTHONPATH=. python tests/training/kill_run.py --kills 20 --folder /tmp/kills --report report.md

Half of the kills happen at any time between the start and the end of a process, half while a step
is being written. A run that reaches its end is compared, and another one begins until the number of
kills is reached. With --processes 2, one of two processes is killed at random, and the other one
must end without help.
"""

import argparse
import contextlib
import os
import random
import shutil
import time
from pathlib import Path

import runs

from elva_jax.tools.datasets.moving_shapes import builder
from elva_jax.tools.datasets.moving_shapes.tokenizer import build_for_moving_shapes

STEPS = {"teacher": 300, "video": 900}
OVERRIDES = {
    **{f"stages.{stage}.steps": steps for stage, steps in STEPS.items()},
    "log.every": 2,
    "log.tensorboard": False,
    "checkpoint.every": 25,
    "checkpoint.minutes": 0.02,
}
LONGEST = 60.0  # a kill outside of a save happens within so many seconds after the start


def build_data(folder):
    """Builds a data set of two dozen records per split, and a tokenizer."""
    builder.build(folder, "easy", sizes={"image": 24, "train": 24}, workers=1)
    build_for_moving_shapes(folder / "tokenizer", ("easy",), vocab_size=500, scenes=60)


def writing(workdir, since=frozenset()):
    """The folders of steps that are being written, except those in `since`."""
    found = set()
    for path in workdir.glob("*/checkpoints/*orbax-checkpoint-tmp*"):
        with contextlib.suppress(FileNotFoundError):
            found.add((path, path.stat().st_ino))
    return found - since


def kill(processes, workdir, rng, before):
    """Kills one process at a random moment.

    Returns the moment and the seconds until the other processes ended, or None if the process had
    already ended. Unfinished saves in `before` are older than the processes, and are ignored.
    """
    began, in_save = time.monotonic(), rng.random() < 0.5
    victim = rng.choice(processes)
    wait = rng.uniform(0, LONGEST)
    while victim.poll() is None and time.monotonic() - began < wait:
        time.sleep(0.002)
    if in_save:
        while victim.poll() is None and not writing(workdir, before):
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.15))
    if victim.poll() is not None:
        return None
    killed = time.monotonic()
    victim.kill()
    moment = f"{killed - began:.1f} s{', in a save' if writing(workdir, before) else ''}"
    for process in processes:
        assert process.wait(timeout=300) != 0
    return moment, time.monotonic() - killed


def left_over(process, seconds=15):
    """Whether the group of the killed process still has processes after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.1)
    return True


def state_of(workdir):
    """The current stage, its newest saved step and its last reported step."""
    stage = next(
        (stage for stage in reversed(STEPS) if (workdir / stage).is_dir()), next(iter(STEPS))
    )
    lines = runs.reports(workdir, stage)
    return stage, runs.newest(workdir, stage), lines[-1]["step"] if lines else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument(
        "--workers", type=int, default=1, help="decoding processes of every second start"
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--report", type=Path, required=True)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    shutil.rmtree(args.folder, ignore_errors=True)
    build_data(args.folder / "data")
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(args.folder / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }

    def begin(workdir, workers=0):
        overrides = OVERRIDES | {f"stages.{stage}.data.workers": workers for stage in STEPS}
        return runs.start(
            workdir, args.folder / "data", overrides, environment, processes=args.processes
        )

    whole = args.folder / "whole"
    runs.finish(begin(whole))
    rows, verdicts = [], []
    workdir = args.folder / "cut-0"
    while True:
        workers = args.workers * (len(rows) % 2)
        before = frozenset(writing(workdir))
        processes = begin(workdir, workers)
        if len(rows) < args.kills and (killed := kill(processes, workdir, rng, before)):
            stage, saved, reported = state_of(workdir)
            orphans = "yes" if any(map(left_over, processes)) else "no"
            others = f"{killed[1]:.1f} s" if args.processes > 1 else "—"
            rows.append(
                f"| {len(rows) + 1} | {killed[0]} | {others} | {workers} | {stage}, {reported}"
                f" | {saved} | {orphans} |"
            )
            print(rows[-1], flush=True)
            continue
        runs.finish(processes)
        found = runs.differences(workdir, whole, STEPS)
        verdicts.append(
            f"{workdir.name}: "
            + ("bitwise equal" if not found else f"DIFFERS in {'; '.join(found)}")
        )
        print(verdicts[-1], flush=True)
        if len(rows) == args.kills:
            break
        workdir = args.folder / f"cut-{len(verdicts)}"
    head = (
        "| Kill | After | Others ended after | Decoding processes | Last report | Continues from |"
    )
    head += " Left over |\n|---|---|---|---|---|---|---|"
    args.report.write_text("\n".join([head, *rows, "", *verdicts]) + "\n")


if __name__ == "__main__":
    main()
