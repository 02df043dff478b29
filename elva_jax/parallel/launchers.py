"""Which process of how many this is, from flags and from what Slurm, Open MPI or Kubernetes say.

JAX detects some of this too, but it assumes one GPU per process wherever Slurm or Open MPI number
the processes of a host, and it asks the Kubernetes API with rights that pods rarely have.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from elva_jax.errors import ConfigError

# The range from which a job's number chooses the coordinator's port, the same as JAX's.
FIRST_PORT, NUM_PORTS = 61_440, 4096

# Slurm's lists: names with brackets of numbers in any place; numbers of tasks per node.
_RANGE = r"\d{1,18}(?:-\d{1,18})?"
_NUMBERS = rf"\[{_RANGE}(?:,{_RANGE})*\]"
_HOST = rf"[A-Za-z0-9_](?:[A-Za-z0-9_.-]|{_NUMBERS})*"
NODES = re.compile(rf"{_HOST}(?:,{_HOST})*", re.ASCII)
_COUNT = r"\d{1,9}(?:\(x\d{1,9}\))?"
COUNTS = re.compile(rf"{_COUNT}(?:,{_COUNT})*", re.ASCII)
# JOB.0;tcp://HOST,HOST:PORT, or tcp6://[HOST,HOST]:PORT, and other ways to the same process.
MPI_ADDRESS = re.compile(
    r"(\d+)\.\d+;(?:tcp://([\w.-]+)(?:,[\w.-]+)*|tcp6://\[([\w:.]+)(?:,[\w:.]+)*\]):\d+(?:;.*)?",
    re.ASCII,
)
ALONE = "use --distributed off for a single process"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessSpec:
    """One process of several."""

    launcher: str  # where the numbers come from: a launcher's name, or "flags"
    coordinator: str  # HOST:PORT of process 0
    num_processes: int
    process_id: int
    local_devices: tuple[int, ...] | None = None  # indices of its devices; None: all it can see


def detect_process(
    environ: Mapping[str, str],
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    local_devices: tuple[int, ...] | None = None,
) -> ProcessSpec | None:
    """Finds out which process this is; None where it is the only one.

    Arguments take precedence over ELVA_COORDINATOR, ELVA_NUM_PROCESSES and ELVA_PROCESS_ID, and
    these over the launcher: srun, mpirun, or a Kubernetes Job with completionMode Indexed, whose
    pods know only their index.

    Raises:
      ConfigError: values are missing, impossible, or contradict the launcher's.
    """
    launcher, found = _read_launcher(environ)
    if found.get("num_processes") == 1:  # a plain shell inside a job
        launcher, found = "", {}
    given = {
        "coordinator": coordinator or environ.get("ELVA_COORDINATOR"),
        "num_processes": num_processes,
        "process_id": process_id,
    }
    for name in ("num_processes", "process_id"):
        if given[name] is None:
            given[name] = _read_int(environ, f"ELVA_{name.upper()}")
        said, real = given[name], found.get(name)
        if None not in (said, real) and said != real:
            raise ConfigError(
                f"{_flag(name)}: {said}, but {launcher} says {real}; omit the flag, or {ALONE}"
            )
    known = found | {name: value for name, value in given.items() if value is not None}
    if not known and local_devices is not None:
        raise ConfigError(
            "--local-devices: this process is the only one; choose its GPUs with"
            " CUDA_VISIBLE_DEVICES"
        )
    if not known or known.get("num_processes") == 1:
        return None
    if missing := [_flag(name) for name in given if name not in known]:
        who = f", and {launcher} does not say" if launcher else ", but several processes need it"
        raise ConfigError(f"{', '.join(missing)}: not given{who}; {ALONE}")
    _check_values(known["coordinator"], known["num_processes"], known["process_id"])
    if local_devices is None:
        local_devices = share_of_gpus(
            environ.get("CUDA_VISIBLE_DEVICES"),
            found.get("local_index"),
            found.get("processes_on_host"),
        )
    return ProcessSpec(
        launcher=launcher or "flags",
        **{name: known[name] for name in given},
        local_devices=local_devices,
    )


def _check_values(coordinator: str, num_processes: int, process_id: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
        raise ConfigError(
            f"{_flag('coordinator')}: '{coordinator}' is not the HOST:PORT of process 0"
        )
    if not 0 <= process_id < num_processes:
        raise ConfigError(
            f"{_flag('process_id')}: {process_id} is not within 0 … {num_processes - 1},"
            f" the numbers of {num_processes} processes"
        )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')} (or ELVA_{name.upper()})"


def _read_launcher(environ: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """The launcher's name, and which of these it sets.

    coordinator, num_processes, process_id as in `ProcessSpec`; local_index, processes_on_host: this
    process among those of its host.
    """
    if "SLURM_JOB_ID" in environ and "SLURM_PROCID" in environ:
        return "Slurm", _read_slurm(environ)
    if "OMPI_COMM_WORLD_RANK" in environ:
        return "Open MPI", _read_open_mpi(environ)
    if "JOB_COMPLETION_INDEX" in environ and "KUBERNETES_SERVICE_HOST" in environ:
        return "Kubernetes", {"process_id": _read_int(environ, "JOB_COMPLETION_INDEX")}
    return "", {}


def _read_slurm(environ: Mapping[str, str]) -> dict[str, Any]:
    count = _read_int(environ, "SLURM_STEP_NUM_TASKS") or _read_int(environ, "SLURM_NTASKS") or 1
    if "SLURM_STEP_NODELIST" not in environ:  # the batch script itself, or the shell of salloc
        if count > 1:
            raise ConfigError(
                f"Slurm: {count} tasks, but srun did not start this process: start the command"
                f" with srun, or {ALONE}"
            )
        return {}
    on_host = _count_on_node(
        _read_int(environ, "SLURM_NODEID") or 0,
        environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE") or "",
    )
    port = _port(_read_int(environ, "SLURM_JOB_ID"))
    return {
        "process_id": _read_int(environ, "SLURM_PROCID"),
        "num_processes": count,
        "coordinator": f"{first_host(environ['SLURM_STEP_NODELIST'])}:{port}",
        "local_index": _read_int(environ, "SLURM_LOCALID"),
        "processes_on_host": on_host,
    }


def _read_open_mpi(environ: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "process_id": _read_int(environ, "OMPI_COMM_WORLD_RANK"),
        "num_processes": _read_int(environ, "OMPI_COMM_WORLD_SIZE"),
        "local_index": _read_int(environ, "OMPI_COMM_WORLD_LOCAL_RANK"),
        "processes_on_host": _read_int(environ, "OMPI_COMM_WORLD_LOCAL_SIZE"),
    }
    # Only Open MPI 4 says where mpirun runs, which by default is the host of process 0.
    uri = MPI_ADDRESS.fullmatch(environ.get("OMPI_MCA_orte_hnp_uri", ""))
    if uri:
        found["coordinator"] = f"{uri[2] or f'[{uri[3]}]'}:{_port(int(uri[1]) // 4096)}"
    return found


def first_host(nodes: str) -> str:
    """The first host of Slurm's compressed list, such as `node[001-004,007],rack[1-2]n[1-9]`.

    Raises:
      ConfigError: the list is empty, cut off, or in another grammar.
    """
    ranges = [(int(a), int(b)) for a, b in re.findall(r"(\d+)-(\d+)(?=[,\]])", nodes)]
    if not NODES.fullmatch(nodes) or any(a > b for a, b in ranges):
        raise ConfigError(
            f"SLURM_STEP_NODELIST: '{nodes[:80]}' is not a list of hosts; give --coordinator"
            " HOST:PORT"
        )
    firsts = re.sub(r"\[(\d+)[^\]]*\]", r"\1", nodes)  # the first number of each bracket
    return firsts.partition(",")[0]


def _count_on_node(node: int, counts: str) -> int | None:
    """Tasks on a node, from Slurm's numbers for all: `8(x2),4` is 8, 8, 4; None beyond the last."""
    if counts and not COUNTS.fullmatch(counts):
        raise ConfigError(f"SLURM_STEP_TASKS_PER_NODE: '{counts[:80]}' is not like 8(x2),4")
    for tasks, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", counts):
        node -= int(times or 1)
        if node < 0:
            return int(tasks)
    return None


def share_of_gpus(
    visible: str | None, local: int | None, on_host: int | None
) -> tuple[int, ...] | None:
    """A process's GPUs among those it can see, if several processes share the host.

    Args:
      visible: CUDA_VISIBLE_DEVICES; None or "": unknown.
      local: number of the process among those of its host.
      on_host: how many these are.

    Raises:
      ConfigError: the GPUs do not divide among the processes.
    """
    if local is None or on_host in (None, 1) or not visible:
        return None
    listed = visible.split(",")
    if not all(name.strip() for name in listed):
        raise ConfigError(f"CUDA_VISIBLE_DEVICES: '{visible}' has an empty entry")
    gpus = len(listed)
    if gpus == 1:  # the launcher has already given each process its own
        return None
    if gpus % on_host:
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES: {gpus} GPUs do not divide among {on_host} processes of this"
            " host; give --local-devices"
        )
    share = gpus // on_host
    return tuple(range(local * share, (local + 1) * share))


def _port(job: int | None) -> int:
    return FIRST_PORT + (job or 0) % NUM_PORTS


def _read_int(environ: Mapping[str, str], name: str) -> int | None:
    """A whole number from the environment; None where it is not set."""
    text = environ.get(name)
    if not text:
        return None
    if not re.fullmatch("[0-9]{1,18}", text):
        raise ConfigError(f"{name}: '{text}' is not a whole number")
    return int(text)
