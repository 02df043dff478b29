"""Settings of the whole suite, which the processes that tests start inherit.

Most of its time is XLA compiling programs that run for a moment. Without LLVM's optimizations, and
with the older of XLA's two code generators for CPUs, that takes less than half of the time.
Processes read what another one has compiled.
"""

import atexit
import gc
import os
import shutil
import signal
import tempfile
from importlib.metadata import version
from pathlib import Path

if "PYTEST_XDIST_WORKER" not in os.environ:  # workers get these from the process that starts them
    flags = ["--xla_backend_optimization_level=0"]
    if version("jaxlib").startswith("0.10."):  # XLA aborts where it does not know a flag
        flags.append("--xla_cpu_use_fusion_emitters=false")
        flags.append("--xla_cpu_parallel_codegen_split_count=1")  # the other cores run tests
    given = os.environ.get("XLA_FLAGS", "").split()
    os.environ["XLA_FLAGS"] = " ".join([*(flag for flag in flags if flag not in given), *given])
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # a developer's own folder is kept
        programs = tempfile.mkdtemp(prefix="elva-test-programs-")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = programs
        atexit.register(shutil.rmtree, programs, ignore_errors=True)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
    # Lowering would note ten lines of source for every operation.
    os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
    # For arrays as small as ours, threads of PyTorch's would wait for each other in loops.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["HF_HUB_OFFLINE"] = "1"  # names that no folder has are refused without a wait

import jax
import numpy as np
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# A suite that a script starts in the background inherits an ignored SIGINT, which some tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Types and shapes in the annotations of these are checked at every call, in tests only. It has to
# come before the first import of the package.
INFERENCE = ("decode", "hidden", "kv_cache", "params", "prefill", "sampling", "scoring")
MODELS = ("elva", "encoder_embed", "guidance", "lora", "merv", "patch_embed", "qwen2", "towers")
CHECKED = (
    "ops",
    *(f"inference.{name}" for name in INFERENCE),
    *(f"models.{name}" for name in MODELS),
)
# An int may stand for a float, as type checkers have it.
CONF = "beartype.BeartypeConf(is_pep484_tower=True)"
install_import_hook([f"elva_jax.{name}" for name in CHECKED], f"beartype.beartype(conf={CONF})")

gc.disable()  # until the tests are collected: imports make objects that stay
gc.set_threshold(20_000, 20, 20)  # so does tracing
jax.config.update("jax_numpy_rank_promotion", "raise")
settings.register_profile("elva", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("elva")


def pytest_collection_finish():
    """Exempts from garbage collection what lives as long as the process."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Forgets compiled programs before their memory maps exceed Linux's limit of 65,530."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 45_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def config_dir():
    """The repository's configs."""
    return Path(__file__).parents[1] / "configs"


@pytest.fixture(scope="session")
def special_tokens():
    """The 22 added tokens of Qwen2.5's vocabulary, of which the last 8 are not special; ours."""
    pairs = ("object_ref", "box", "quad", "vision")
    return [
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        *(f"<|{pair}_{side}|>" for pair in pairs for side in ("start", "end")),
        *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>"),
        *(f"<|fim_{name}|>" for name in ("prefix", "middle", "suffix", "pad")),
        *("<|repo_name|>", "<|file_sep|>"),
        *("<video>", "<image>", "<FRAME>", "<LINE>", "<PATCH>"),
    ]


@pytest.fixture(scope="session")
def videos():
    """Noise, a still picture four times, a half-still video of another shape, one frame."""
    rng = np.random.default_rng(0)

    def noise(*shape):
        return rng.integers(0, 256, (*shape, 3), dtype=np.uint8)

    still, half = noise(32, 32), [noise(32, 24) for _ in range(4)]
    for frame in half:
        frame[:16] = half[0][:16]
    return [[noise(32, 32) for _ in range(4)], [still] * 4, half, [noise(16, 32)]]
