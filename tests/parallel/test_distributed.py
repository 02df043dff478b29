"""Detecting a process from its launcher, and real processes that start together or fail to."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax._src.clusters import SlurmCluster
from jax._src.clusters.ompi_cluster import OmpiCluster

from elva_jax.config import schema
from elva_jax.errors import ConfigError
from elva_jax.parallel.launchers import ProcessSpec, detect_process, first_host
from elva_jax.parallel.mesh import make_mesh

TINY = Path(__file__).parents[1] / "training" / "tiny_run.py"
SLURM = {
    "SLURM_JOB_ID": "123456",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "node[004-005]",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
}
MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
}
PODS = {
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
    "JOB_COMPLETION_INDEX": "3",
    "ELVA_NUM_PROCESSES": "4",
    "ELVA_COORDINATOR": "job-0.pods:8476",
}


def test_a_single_process():
    assert detect_process({}) is None
    assert (
        detect_process(
            {
                "SLURM_JOB_ID": "1",
                "SLURM_PROCID": "0",
                "SLURM_NTASKS": "1",
                "SLURM_STEP_NODELIST": "a",
            }
        )
        is None
    )
    assert detect_process({"ELVA_NUM_PROCESSES": "1"}) is None


NUMBERS = st.integers(0, 30)
RANGES = st.tuples(NUMBERS, st.integers(0, 3), st.integers(1, 3))  # first, more, digits
HOSTS = st.lists(
    st.tuples(st.sampled_from(["n", "rack-a", "x.y"]), st.lists(RANGES, max_size=3)),
    min_size=1,
    max_size=2,
)


def written(pieces):
    """A host expression of Slurm's, and the first host that it names."""
    text = first = ""
    for name, ranges in pieces:
        text, first = text + name, first + name
        if ranges:
            text += f"[{','.join(f'{a:0{w}}-{a + more:0{w}}' for a, more, w in ranges)}]"
            first += f"{ranges[0][0]:0{ranges[0][2]}}"
    return text, first


@given(st.lists(HOSTS, min_size=1, max_size=3))
def test_node_lists_are_read_whole_or_refused(hosts):
    texts = [written(pieces) for pieces in hosts]
    whole = ",".join(text for text, _ in texts)
    assert first_host(whole) == texts[0][1]
    for end in range(len(whole)):  # cut anywhere
        part = whole[:end]
        try:
            found = first_host(part)
        except ConfigError:
            continue
        assert part.count("[") == part.count("]")
        assert found.startswith(texts[0][1][: len(found)])


@pytest.mark.parametrize(
    "nodes",
    [
        "",
        ",",
        "n[",
        "n[]",
        "n[1-",
        "n[1]]",
        "n[3-1]",
        "n[1,]",
        "n[a-b]",
        "n1,",
        "n[²]",
        "a b",
        f"n[{9:05000}]",
    ],
)
def test_other_node_lists_are_refused(nodes):
    with pytest.raises(ConfigError, match="SLURM_STEP_NODELIST"):
        first_host(nodes)


@pytest.mark.parametrize("counts", ["4(x2", "4x2", "4(2)", "4,,2", "4;2", "²", "9" * 5000])
def test_other_counts_of_tasks_are_refused(counts):
    with pytest.raises(ConfigError, match="SLURM_STEP_TASKS_PER_NODE"):
        detect_process(SLURM | {"SLURM_STEP_TASKS_PER_NODE": counts})


def test_flags():
    given = {"coordinator": "10.0.0.1:1234", "num_processes": 2, "process_id": 1}
    assert detect_process({}, **given) == ProcessSpec(launcher="flags", **given)
    given |= {"coordinator": "[fe80::1]:1234", "local_devices": (0, 1)}
    assert detect_process({}, **given).local_devices == (0, 1)
    environ = {"ELVA_COORDINATOR": "a:1", "ELVA_NUM_PROCESSES": "3"}
    assert detect_process(environ, process_id=2) == ProcessSpec(
        launcher="flags", coordinator="a:1", num_processes=3, process_id=2
    )


def test_slurm_as_jax_reads_it(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    process = detect_process(SLURM)
    assert process.launcher == "Slurm"
    assert process.coordinator == SlurmCluster.get_coordinator_address(None, None)
    assert (
        (process.num_processes, process.process_id)
        == (SlurmCluster.get_process_count(), SlurmCluster.get_process_id())
        == (8, 5)
    )


def test_open_mpi_as_jax_reads_it(monkeypatch):
    for name, value in MPI.items():
        monkeypatch.setenv(name, value)
    expected = {"launcher": "Open MPI", "num_processes": 2, "process_id": 1}
    address = OmpiCluster.get_coordinator_address(None, None)
    assert detect_process(MPI) == ProcessSpec(coordinator=address, **expected)
    without = {
        name: value for name, value in MPI.items() if name != "OMPI_MCA_orte_hnp_uri"
    }  # Open MPI 5
    with pytest.raises(
        ConfigError,
        match=r"--coordinator \(or ELVA_COORDINATOR\): not given, and Open MPI does not say",
    ):
        detect_process(without)
    assert detect_process(without, coordinator="a:1") == ProcessSpec(coordinator="a:1", **expected)


def test_kubernetes():
    assert detect_process(PODS) == ProcessSpec(
        launcher="Kubernetes", coordinator="job-0.pods:8476", num_processes=4, process_id=3
    )
    with pytest.raises(
        ConfigError,
        match=r"ELVA_NUM_PROCESSES\): not given, and Kubernetes does not say; .*--distributed off",
    ):
        detect_process({name: value for name, value in PODS.items() if not name.startswith("ELVA")})


@pytest.mark.parametrize(
    ("visible", "tasks", "devices"),
    [
        (None, "4(x2)", None),  # the GPUs are unknown
        ("2", "4(x2)", None),  # one visible GPU per process: the launcher has assigned it
        ("0,1,2,3", "4(x2)", (1,)),
        ("0,1,2,3,4,5,6,7", "4(x2)", (2, 3)),
        ("0,1,2,3", "7,1", None),  # alone on its host
        ("0,1,2,3", ",".join(["4(x900000000)"] * 9), (1,)),  # not expanded
    ],
)
def test_a_share_of_the_gpus(visible, tasks, devices):
    environ = {**SLURM, "SLURM_STEP_TASKS_PER_NODE": tasks}
    assert (
        detect_process(
            environ | ({"CUDA_VISIBLE_DEVICES": visible} if visible else {})
        ).local_devices
        == devices
    )


@pytest.mark.parametrize(
    ("environ", "flags", "message"),
    [
        (SLURM, {"num_processes": 4}, r"--num-processes .*: 4, but Slurm says 8"),
        (SLURM, {"process_id": 0}, r"--process-id .*: 0, but Slurm says 5"),
        (
            {**SLURM, "CUDA_VISIBLE_DEVICES": "0,1,2"},
            {},
            "3 GPUs do not divide among 4 processes of this host",
        ),
        (
            {k: v for k, v in SLURM.items() if "STEP" not in k},
            {},
            "Slurm: 8 tasks, but srun did not start this process",
        ),
        ({**SLURM, "SLURM_PROCID": "x"}, {}, "SLURM_PROCID: 'x' is not a whole number"),
        ({}, {"num_processes": 4}, r"--coordinator .*, --process-id .*: not given"),
        (
            {},
            {"num_processes": 4, "process_id": 4, "coordinator": "a:1"},
            r"--process-id .*: 4 is not within 0 … 3",
        ),
        (
            {},
            {"num_processes": 4, "process_id": 1, "coordinator": "a"},
            r"--coordinator .*: 'a' is not the HOST:PORT",
        ),
    ],
)
def test_impossible_values_are_refused(environ, flags, message):
    with pytest.raises(ConfigError, match=message):
        detect_process(environ, **flags)


@pytest.mark.parametrize(
    "nodes",
    ["node001", "node001,host2", "node[001-0015],host2", "node[001,007-015],host2", "a-b[3]"],
)
def test_first_host_as_jax_reads_it(nodes, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "0")
    monkeypatch.setenv("SLURM_STEP_NODELIST", nodes)
    if nodes == "a-b[3]":  # JAX keeps the bracket
        assert first_host(nodes) == "a-b3"
    else:
        assert first_host(nodes) == SlurmCluster.get_coordinator_address(None, "1").removesuffix(
            ":1"
        )


def train(workdir, *words):
    """`elva train` of the toy run, which ends before it reads data."""
    command = [
        sys.executable,
        "-m",
        "elva_jax.cli",
        "train",
        "--config",
        str(TINY),
        "--workdir",
        str(workdir),
        *words,
    ]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_missing_or_different_processes_end_with_one_line(tmp_path, port):
    """No process 1; no process 0; two processes with different configurations."""
    address, other, third = f"127.0.0.1:{port}", "127.0.0.1:9", f"localhost:{port + 1}"
    flags = ("--num-processes", "2", "--start-timeout", "2", "--process-id")
    without_1 = train(tmp_path / "a", "--coordinator", address, *flags, "0")
    without_0 = train(tmp_path / "b", "--coordinator", other, *flags, "1")
    flags = (*flags[:2], "--coordinator", third, "--process-id")
    pair = [
        train(tmp_path / "c", *flags, "0"),
        train(tmp_path / "c", *flags, "1", "--config.seed=1"),
    ]
    expected = [
        (
            without_1,
            1,
            "1 of 2 processes did not come within 2 s: 1; check the logs of those processes",
        ),
        (without_0, 1, "process 0 did not answer at 127.0.0.1:9 within 2 s (Connection refused)"),
        *((process, 2, "process 1 differs: config.seed: 1, in process 0 0") for process in pair),
    ]
    for process, status, message in expected:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == status, errors
        (line,) = errors.splitlines()
        assert line.startswith(f"elva train: {message}")


@pytest.mark.slow
def test_two_processes_of_four_devices_equal_one_device(compare):
    """Contrastive negatives come from both processes; `equality.py all` has every mesh."""
    for case, result in compare(
        ("video:data=2,fsdp=2,tensor=2,accumulate=2",), devices=4, processes=2
    ):
        assert result["loss"] < 1e-5, case
        assert result["worst"] < 1e-5, (case, result["where"])
        assert result["largest"] > 1e-2, case
        assert result["pinned"], case


def test_rows_are_not_split_between_processes(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    config = schema.mesh()
    config.update(data=1, tensor=2)
    with pytest.raises(
        ConfigError,
        match=r"mesh: context x tensor = 2 devices hold the same rows, but a process has 1",
    ):
        make_mesh(config)


def test_cpus_exchange_through_gloo():
    """`initialize` relies on JAX's default."""
    assert jax.config.jax_cpu_collectives_implementation == "gloo"
