"""Run by test_sharding.py with eight fake devices: prints what a step gives under several meshes, as JSON."""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from elva_jax.parallel.mesh import make_mesh, shard_batch
from elva_jax.parallel.sharding import activation_rules, on_mesh, parameter_shardings
from elva_jax.training import loop, step
from elva_jax.training.objective import SiglipVision, make_objective, teacher_config
from elva_jax.training.optimizer import path_name


def main(stage: str, meshes: list[dict]) -> dict:
    tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "training" / "tiny_run.py")))
    config = tiny.get_config()
    config.stages[stage].batch_size = 8
    config.stages[stage].optimizer.name = "adamw"
    objective = make_objective(config, stage)
    key = jax.random.key(0)
    boxed = jax.eval_shape(objective.init, key)
    params = jax.jit(lambda key: nn.meta.unbox(objective.init(key)))(key)
    side = config.teacher.image_size
    tower = jax.jit(SiglipVision(teacher_config(config)).init)(key, jnp.zeros((1, side, side, 3)))
    frozen = jax.device_get({"teacher": nn.meta.unbox(tower)["params"]})
    params, batch = jax.device_get(params), tiny.random_batch(config, stage)
    loss, _, grads = jax.jit(lambda p, f, b: step.value_and_grad(objective.loss, p, f, b, 1))(params, frozen, batch)
    report = {"loss": float(loss), "norm": max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)), "meshes": []}
    for sizes in meshes:
        config.mesh.update(sizes)
        mesh = make_mesh(config.mesh)
        placed = jax.device_put(params, parameter_shardings(boxed, mesh, objective.counts))
        program = jax.jit(lambda p, f, b: step.value_and_grad(objective.loss, p, f, b, 1))
        with on_mesh(mesh, activation_rules(boxed, mesh, objective.counts)):
            value, _, ours = program(placed, frozen, shard_batch(batch, mesh))
        worst = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), ours, grads)
        split = {
            path_name(path): len({str(piece.index) for piece in leaf.addressable_shards})
            for path, leaf in jax.tree_util.tree_leaves_with_path(placed)
        }
        setting = loop.set_up(config, stage, objective, mesh, 8)
        moments = {
            path_name(path): list(leaf.sharding.spec) for path, leaf in jax.tree_util.tree_leaves_with_path(setting.shapes.opt_state)
        }
        report["meshes"].append({"loss": float(value), "worst": max(jax.tree.leaves(worst)), "split": split, "moments": moments})
    return report


if __name__ == "__main__":
    print("RESULT " + json.dumps(main(sys.argv[1], json.loads(sys.argv[2]))))
