"""A second process loads the programs that the first compiled."""

import os
import subprocess
import sys

PREFILL = """
import numpy as np
from elva_jax.tools.bench.random_model import random_patches, random_weights
from elva_jax.inference.prefill import prefill
from elva_jax.utils.compilation_cache import ProgramCount, enable_compilation_cache
from elva_jax.inference.batching import build_rows
from elva_jax.config.schema import ModelConfig
from elva_jax.models.elva import merging_of
from elva_jax.video.layout import Clip, Text

enable_compilation_cache()
config = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    tie_embeddings=False,
    patch_size=4,
    patch_width=16,
    dtype="float32",
    merge_layers=(1,),
    merge_policies=("threshold",),
    merge_thresholds=(0.6,),
    merge_ratios=(0.5,),
)
clip = Clip(((2, 2),) * 4)
rows = build_rows([(Text((1, 2)), clip)], [random_patches(clip.grids, 48, "slow")], 48)
with ProgramCount() as programs:
    prefix = prefill(config, random_weights(config), rows, merging_of(config))
print(programs.loaded, programs.compiled, np.asarray(prefix.layers[-1].k).sum())
"""


# Programs of one line each, where it does not matter what they compute.
SMALL = """
import jax
import numpy as np
from elva_jax.utils.compilation_cache import ProgramCount, enable_compilation_cache

enable_compilation_cache()
with ProgramCount() as programs:
    found = [jax.jit(lambda x: x[::-1] @ x)(np.arange(n, dtype="float32")) for n in range(2, 9)]
print(programs.loaded, programs.compiled, sum(map(float, found)))
"""


def start(script, folder, **variables):
    """Hits, misses and the result of a process, and what it says."""
    env = os.environ | {"XDG_CACHE_HOME": str(folder)}
    for name in list(env):
        if name.startswith(("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE")):
            del env[name]
    env |= variables
    ended = subprocess.run(
        [sys.executable, "-c", script], env=env, check=True, capture_output=True, text=True
    )
    hits, misses, result = ended.stdout.split()
    return int(hits), int(misses), result, ended.stderr


def test_a_later_start_compiles_nothing(tmp_path):
    _, first_misses, first_result, _ = start(PREFILL, tmp_path)
    hits, misses, result, _ = start(PREFILL, tmp_path)
    assert first_misses > 5
    assert (misses, result) == (0, first_result)
    assert hits >= first_misses


def test_a_later_start_compiles_only_what_a_killed_process_left_incomplete(tmp_path):
    _, first_misses, first_result, _ = start(SMALL, tmp_path)
    assert first_misses > 5
    programs = sorted((tmp_path / "elva_jax" / "programs").glob("*-cache"))
    for program in programs[:3]:  # the time of the last use is written after the program
        program.write_bytes(program.read_bytes()[:50])
        program.with_name(program.name.replace("-cache", "-atime")).unlink()
    hits, misses, result, said = start(SMALL, tmp_path)
    assert (hits, misses, result) == (first_misses - 3, 3, first_result)
    assert "persistent compilation cache" not in said
    assert start(SMALL, tmp_path)[1] == 0


def test_a_folder_of_ones_own_has_all_programs_and_loses_none(tmp_path):
    """Such a folder has no times of last use, as JAX writes them where the size is limited."""
    foreign = tmp_path / "jit_other-0123-cache"
    foreign.write_bytes(b"of another program")
    first = start(SMALL, tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path))
    second = start(SMALL, tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path))
    assert first[1] > 5
    assert (second[1], second[2]) == (0, first[2])
    assert foreign.exists()
