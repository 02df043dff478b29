"""Tests of `elva plan` on a toy run for eight devices against counts by hand."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from elva_jax.config import schema
from elva_jax.config.load import load
from elva_jax.config.serialize import freeze
from elva_jax.errors import ConfigError
from elva_jax.models import flops
from elva_jax.ops.attention import packed_attention, replaced_by
from elva_jax.tasks.registry import make_task
from elva_jax.tools.plan import estimate
from elva_jax.tools.plan.advice import advice
from elva_jax.tools.plan.attention import fused_shapes
from elva_jax.tools.plan.command import _teachers_table
from elva_jax.tools.plan.hardware import DEVICES, GIB
from elva_jax.tools.plan.hlo import Collective
from elva_jax.tools.plan.schedule import schedule
from elva_jax.tools.plan.stage import collectives_of
from elva_jax.tools.plan.teachers import plan_teachers

CONFIG = Path(__file__).parents[2] / "training" / "tiny_run.py"
SETTINGS = [
    "--config.model.dtype=bfloat16",
    "--config.mesh.data=2",
    "--config.mesh.fsdp=4",
    "--config.stages.sft.batch_size=16",
    "--config.stages.sft.optimizer.name=adamw",
    "--config.stages.sft.merge_buckets=(128,)",
    "--config.model.remat=full",
]
ROWS, MERGED = 2, 128  # rows per device; tokens after merging


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """The report on the merging stage and the printed text, from a separate process."""
    file = tmp_path_factory.mktemp("plan") / "plan.json"
    command = [
        sys.executable,
        "-m",
        "elva_jax.cli",
        "plan",
        "--config",
        f"{CONFIG}:sft",
        "--devices",
        "8",
        "--json",
        str(file),
        *SETTINGS,
    ]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(file.read_text())["stages"][0], done.stdout


def test_memory_of_a_device(plan):
    """fsdp splits all of the decoder in four but three matrices and a few vectors."""
    stage, _ = plan
    memory, count = stage["memory"], stage["parameters"]["all"]
    # The patch embedding without its last map; biases of q, k and v.
    whole = 3 * 32 * 32 + 768 * 32 + 3 * 32 + 2 * 2 * (4 + 2 * 2) * 8 // 2
    assert memory["parameters"] == 4 * (whole + (count - whole) // 4)
    assert memory["gradients"] == memory["parameters"]
    assert memory["optimizer"] == pytest.approx(2 * memory["parameters"], abs=64)
    # 11 fields with one number per token, one field with four.
    assert memory["batch"] == ROWS * (40 * 768 + 160 * 4 * (11 + 4))
    assert memory["mask"] == ROWS * 160**2 * 3
    assert memory["total"] == sum(size for name, size in memory.items() if name != "total")
    assert 0.3 < stage["activations_by_hand"] / memory["activations"] < 3
    assert stage["fits"]


def test_matrix_products_are_those_of_the_model(plan):
    """Three forward passes, and a recomputed one without the last matrix of each layer."""
    stage, _ = plan
    config = freeze(load(str(CONFIG))).model
    e = config.patch_width
    layer = flops.layer_weights(config)
    linear = 2.0 * (160 + MERGED) * (4 * layer - config.hidden_size * config.intermediate_size)
    head = 3 * flops.head(config, MERGED)
    patches = 2.0 * 40 * (2 * 768 * e + 3 * e * e) + 3 * 2.0 * 160 * e * config.hidden_size
    assert stage["flops"]["half"] == pytest.approx(ROWS * (linear + head + patches), rel=0.03)
    square = flops.layer_attention(config, 160 * 161 / 2) + flops.layer_attention(
        config, MERGED * (MERGED + 1) / 2
    )
    assert stage["flops"]["attention"] == ROWS * 4.5 * square


def test_weights_are_gathered_and_gradients_reduced(plan):
    stage, printed = plan
    moved = {(row["kind"], row["axes"]): row["host"] for row in stage["collectives"]}
    layers = 2 * flops.layer_weights(freeze(load(str(CONFIG))).model)
    # In 16 bits, for the forward and the backward pass (recomputation uses the weights of the
    # latter), from three of four devices.
    assert moved["all-gather", "fsdp"] > 2 * 2 * layers * 3 / 4
    assert sum(size for (kind, _), size in moved.items() if "reduce" in kind) > 2 * layers * 3 / 4
    assert not any(row["network"] for row in stage["collectives"])
    assert "mesh data 2 x fsdp 4 x context 1 x tensor 1" in printed


def collective(kind, size, group, times, scattered=False):
    return Collective(kind=kind, size=size, group=tuple(group), times=times, scattered=scattered)


def test_devices_of_a_host_share_its_network_traffic():
    device, axes = DEVICES["a100-80g"], {"data": 4, "fsdp": 8, "tensor": 1}
    programs = [
        collective("all-gather", 800, range(8), 10),
        collective("all-reduce", 800, range(0, 32, 8), 1),
        collective("all-reduce", 3200, range(32), 2, scattered=True),
        collective("all-reduce", 4, (5,), 1),
    ]
    rows = {(row["kind"], row["axes"]): row for row in collectives_of(programs, axes, device)}
    assert set(rows) == {
        ("all-gather", "fsdp"),
        ("all-reduce", "data"),
        ("reduce-scatter", "data x fsdp"),
    }
    inside = rows["all-gather", "fsdp"]
    assert (inside["calls"], inside["host"], inside["network"]) == (10, 10 * 700, 0)
    assert rows["all-reduce", "data"]["host"] == 0
    assert rows["all-reduce", "data"]["network"] == 2 * 600  # with one device per host, all of it
    both = rows["reduce-scatter", "data x fsdp"]
    assert (both["host"], both["network"]) == (2 * 3100, 2 * 3100 / 8)
    assert both["seconds"] == pytest.approx(2 * 3100 / 8 / device.network / 0.8)


def test_steps_of_the_papers_schedule(config_dir):
    """Stage 1 has 4M images of 273 + 200 tokens, and rows of 2048 tokens that are 90 % full."""
    config = load(f"{config_dir}/elva.py:size=7b")
    assert schedule(make_task(config, "stage1")).steps == -(-4_000_000 * 473 // (0.9 * 256 * 2048))
    videos = 16 * 273 + 200
    assert schedule(make_task(config, "stage2")).steps == -(
        -2 * (4_000_000 * 473 + 3_000_000 * videos) // (0.9 * 256 * 6144)
    )
    assert schedule(make_task(load(str(CONFIG)), "video")).steps == 4
    with config.unlocked():
        config.stages.stage1.data.mixture.mine = schema.source("mine.jsonl")
    key = r"stages\.stage1\.steps"
    message = f"{key}: .* how many examples mine has; set --config\\.{key}=N"
    with pytest.raises(ConfigError, match=message):
        schedule(make_task(config, "stage1"))


def test_each_teacher_has_its_memory_and_time(config_dir):
    """ViViT-B's published size, and four whole videos of 16 frames in a row of 64."""
    config = load(f"{config_dir}/ablations.py:variant=table4_siglip+vivit,size=1_5b")
    axes = {"data": 1, "fsdp": 32, "context": 1, "tensor": 1}
    siglip, vivit = plan_teachers(make_task(config, "stage2"), axes, DEVICES["a100-80g"])
    assert (siglip["name"], siglip["frames_of_a_row"]) == ("siglip", "64")
    assert (vivit["name"], vivit["frames_of_a_row"]) == ("vivit", "4 clips of 32")
    assert vivit["parameters"] == pytest.approx(4 * 88.6e6, rel=0.01)
    rows = 256 // 32
    assert vivit["features"] == rows * 64 * 14**2 * 768 * 2
    assert siglip["features"] == rows * 64 * 27**2 * 1152 * 2
    assert vivit["flops"] == pytest.approx(rows * 4 * 2 * 0.452e12, rel=0.01)  # MERV's own count
    assert 0 < vivit["seconds"] < siglip["seconds"]
    assert "vivit" in _teachers_table([{"stage": "stage2", "teachers": [siglip, vivit]}])


def test_advice_for_memory_and_traffic(config_dir):
    task = make_task(load(f"{config_dir}/elva.py:size=1_5b,stage=2"), "stage2")
    memory = {
        "parameters": 6,
        "optimizer": 12,
        "gradients": 6,
        "teacher": 2,
        "batch": 10,
        "activations": 1400,
        "mask": 30,
    }
    plan = {
        "stage": "stage2",
        "mesh": {"data": 1, "fsdp": 1, "tensor": 1},
        "rows": {"micro_batch": 256},
        "memory": {name: size * GIB for name, size in memory.items()},
        "usable": 73.6 * GIB,
        "fits": False,
        "seconds": {"collectives": 0.0, "products": 1.0},
    }
    (line,) = advice(task, plan, 1)
    assert (
        line
        == "--config.stages.stage2.optimizer.accumulate=32: 8 of 256 rows at a time, about 71 GiB"
    )
    plan["rows"]["micro_batch"] = 1
    assert advice(task, plan, 8)[0] == "--config.mesh.tensor=2: one row over 2 devices"
    plan.update(fits=True, seconds={"collectives": 2.0, "products": 1.0})
    assert "collectives (2.0 s) take longer than the products (1.0 s)" in advice(task, plan, 8)[0]


def test_hd_attention_is_counted_with_its_buckets(config_dir):
    config = load(f"{config_dir}/elva.py:size=7b_hd,stage=3")
    task = make_task(config, "stage3")
    assert task.decoder_pieces() == [(2, 81_920), (6, 81_920), (6, 47_872), (14, 30_720)]
    assert estimate.rows(task, {"data": 4, "fsdp": 8, "tensor": 1}) == (1, 8)


def test_attention_by_xla_is_part_of_the_program(config_dir):
    """Of split sequences, of frames that attend both ways, and where the config asks for it.

    Also where cuDNN's kernel cannot run: in float32, and with wide heads.

    The fused kernel and its mask are not counted beside it.
    """
    where = f"{config_dir}/elva.py:size=1_5b,stage=3"
    whole, split = ({"data": 1, "fsdp": 4, "context": parts, "tensor": 1} for parts in (1, 2))
    keys = ["--config.model.attention=xla", "--config.model.frame_attention=bidirectional"]
    fused, asked, both_ways = (make_task(load(where, keys[:k]), "stage3") for k in range(3))
    for counted in (estimate.attention_flops, estimate.mask_bytes):
        assert counted(fused, whole) > 0
        assert counted(fused, split) == 0
        assert counted(asked, whole) == 0
        assert counted(both_ways, whole) == 0
        for key in ("dtype=float32", "head_dim=256", "head_dim=100"):
            task = make_task(load(where, [f"--config.model.{key}"]), "stage3")
            assert counted(task, whole) == 0


@pytest.mark.parametrize(
    ("width", "dtype", "with_products"),
    [
        (8, "float16", ["xla"]),
        (8, "float32", ["auto", "xla"]),
        (136, "float16", ["auto", "xla"]),
        (12, "float16", ["auto", "xla"]),
    ],
)
def test_the_stand_in_takes_the_place_of_cudnns_kernel_alone(width, dtype, with_products):
    """With xla, the products of queries and keys are in the program."""
    q, k = jnp.zeros((1, 16, 4, width), dtype), jnp.zeros((1, 16, 2, width), dtype)
    segment, programs = jnp.ones((1, 16), jnp.int32), {}
    with replaced_by(fused_shapes):
        for name in ("auto", "cudnn", "xla") if len(with_products) == 1 else ("auto", "xla"):
            attend = functools.partial(packed_attention, implementation=name)
            programs[name] = str(jax.make_jaxpr(attend)(q, k, k, segment))
        if len(with_products) > 1:
            with pytest.raises(ConfigError, match=r"model\.attention: cudnn needs"):
                packed_attention(q, k, k, segment, implementation="cudnn")
    assert [name for name in programs if "dot_general" in programs[name]] == with_products
