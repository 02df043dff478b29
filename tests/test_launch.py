"""The scripts in launch/: flags that XLA knows, consistent manifests, and supervised processes."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from elva_jax.parallel.launchers import detect_process

LAUNCH = Path(__file__).parents[1] / "launch"


def bash(command, **environment):
    """Runs a command of bash in a clean environment."""
    clean = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ["HOME"],
        "JAX_PLATFORMS": "cpu",
        **environment,
    }
    return subprocess.run(
        ["bash", "-c", command], env=clean, capture_output=True, text=True, timeout=200, check=False
    )


@pytest.mark.parametrize(
    "name",
    [
        "env_gpu.sh",
        "gpu_report.sh",
        "local_multihost.sh",
        "slurm.sbatch",
        "quickstart.sh",
        "test.sh",
        "venv.sh",
    ],
)
def test_bash_parses_it(name):
    done = bash(f"bash -n {LAUNCH / name}")
    assert not done.returncode, done.stderr


def test_xla_knows_every_flag():
    ask = f"{sys.executable} -c 'import jax; print(len(jax.devices()))'"
    done = bash(
        f"source {LAUNCH}/env_gpu.sh h100 && echo $XLA_FLAGS && {ask}",
        XLA_FLAGS="--xla_force_host_platform_device_count=3",
    )
    flags, devices = done.stdout.splitlines()
    assert devices == "3", done.stderr  # flags of the caller are kept
    assert flags.count("--xla_gpu_") == 13
    assert (
        bash(
            f"source {LAUNCH}/env_gpu.sh h100 && {ask}",
            XLA_FLAGS="--xla_gpu_enable_warp_drive=true",
        ).returncode
        != 0
    )


def test_settings_of_the_machine_take_precedence_and_kinds_differ():
    show = "&& echo $NCCL_NVLS_ENABLE $NCCL_IB_TIMEOUT"
    assert bash(f"source {LAUNCH}/env_gpu.sh a100 {show}").stdout == "0 22\n"
    assert bash(f"source {LAUNCH}/env_gpu.sh h200 {show}", NCCL_IB_TIMEOUT="18").stdout == "2 18\n"
    assert "usage:" in bash(f"source {LAUNCH}/env_gpu.sh v100").stderr


@pytest.mark.parametrize("name", ["gke_jobset.yaml", "k8s_job.yaml"])
def test_a_manifest_is_consistent(name):
    *services, top = yaml.safe_load_all((LAUNCH / name).read_text())
    name = top["metadata"]["name"]
    if top["kind"] == "JobSet":
        (replicated,) = top["spec"]["replicatedJobs"]
        assert top["spec"]["network"]["enableDNSHostnames"]
        job, first = replicated["template"]["spec"], f"{name}-{replicated['name']}-0-0.{name}"
        again = {
            "action": "FailJob",
            "values": [os.EX_TEMPFAIL],
        }  # the JobSet then restarts without counting
        (rule,) = top["spec"]["failurePolicy"]["rules"]
        assert (rule["action"], rule["onJobFailureReasons"]) == (
            "RestartJobSetAndIgnoreMaxRestarts",
            ["PodFailurePolicy"],
        )
    else:
        (service,) = services
        job, first = top["spec"], f"{name}-0.{service['metadata']['name']}"
        assert job["template"]["spec"]["subdomain"] == service["metadata"]["name"]
        assert service["spec"]["selector"] == {"job-name": name}
        assert service["spec"]["clusterIP"] == "None"
        again = {"action": "Ignore", "values": [os.EX_TEMPFAIL]}
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    rules = [
        {"action": rule["action"], "values": rule.get("onExitCodes", {}).get("values")}
        for rule in job["podFailurePolicy"]["rules"]
    ]
    assert again in rules
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy requires it
    assert job["completionMode"] == "Indexed"
    environ = {entry["name"]: entry["value"] for entry in container["env"]}
    environ |= {"JOB_COMPLETION_INDEX": "3", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    port = container["ports"][0]["containerPort"]
    process = detect_process(environ)
    assert process.launcher == "Kubernetes"
    assert process.coordinator == f"{first}:{port}"
    assert (process.num_processes, process.process_id) == (job["parallelism"], 3)
    assert job["parallelism"] == job["completions"]


def test_slurm_signals_early_and_requeues():
    text = (LAUNCH / "slurm.sbatch").read_text()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", text, re.M))
    assert options["signal"] == "TERM@600"
    assert "requeue" in options
    fake = 'srun() { echo "$*"; return "$CODE"; }; scontrol() { echo "scontrol $*"; };'
    fake += " export -f srun scontrol; "
    for code, said, words in (
        ("75", "scontrol requeue 7", "--config x"),
        ("75", "scontrol requeue 7", "generate --input q.jsonl --output a.jsonl"),
        ("0", "", "--config x"),
        ("1", "", "--config x"),
    ):
        done = bash(
            f"{fake} cd {LAUNCH.parent} && bash launch/slurm.sbatch {words}",
            CODE=code,
            SLURM_JOB_ID="7",
        )
        assert done.returncode == int(code)
        assert ("scontrol requeue 7" in done.stdout) == bool(said), done.stdout
        command = words if words.startswith("generate") else f"train {words}"
        assert f"-m elva_jax.cli {command}" in done.stdout


STAND_IN = r"""#!/usr/bin/env bash
# In place of Python: prints a port when asked for one, and otherwise acts as a process of a run.
case "$*" in *socket*) echo 12345; exit ;; esac
for ((k = 1; k < $#; k++)); do
  if [ "${!k}" = --process-id ]; then next=$((k + 1)); id=${!next}; fi
done
trap 'echo "told to stop"; exit 130' INT
echo "$*"
if [ "$PLAY" = crash ] && [ "$id" = 1 ]; then exit 7; fi
if [ "$PLAY" = well ]; then exit 0; fi
if [ "$PLAY" = lose ]; then
  if [ "$id" = 1 ]; then exit 7; fi
  sleep 3
  echo "asked the rest"
  exit 0
fi
for ((k = 0; k < 600; k++)); do sleep 0.1; done
"""


@pytest.fixture
def stand_in(tmp_path):
    path = tmp_path / "python"
    path.write_text(STAND_IN)
    path.chmod(0o755)
    return str(path)


def multihost(stand_in, play, *words):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHON": stand_in, "PLAY": play}
    command = ["bash", str(LAUNCH / "local_multihost.sh"), "2", *(words or ("--config", "c.py"))]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_local_processes_end_together(stand_in):
    well = multihost(stand_in, "well")
    output, _ = well.communicate(timeout=60)
    assert well.returncode == 0, output
    flags = "train --config c.py --coordinator 127.0.0.1:12345 --num-processes 2 --process-id"
    assert sorted(output.splitlines()) == [
        f"[{k}] -u -m elva_jax.cli {flags} {k}" for k in range(2)
    ]

    crash = multihost(stand_in, "crash")
    output, _ = crash.communicate(timeout=60)
    assert crash.returncode == 7, output
    assert "a process ended with status 7; ending the other 1" in output

    lost = multihost(stand_in, "lose", "generate", "--checkpoint", "run")
    output, _ = lost.communicate(timeout=60)
    assert lost.returncode == 7, output
    assert "-u -m elva_jax.cli generate --checkpoint run --coordinator" in output
    assert "[0] asked the rest" in output


@pytest.mark.parametrize("inherited", [signal.SIG_DFL, signal.SIG_IGN])
def test_ctrl_c_reaches_every_local_process(stand_in, inherited):
    """Ignored is what a script passes on that starts it in the background."""
    before = signal.signal(signal.SIGINT, inherited)
    process = multihost(stand_in, "wait")
    signal.signal(signal.SIGINT, before)
    lines = [process.stdout.readline() for _ in range(2)]  # both are up
    assert {line[:3] for line in lines} == {"[0]", "[1]"}
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert sorted(line for line in output.splitlines() if "told" in line) == [
        "[0] told to stop",
        "[1] told to stop",
    ]
