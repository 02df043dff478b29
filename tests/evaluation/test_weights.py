"""The hash of a model's weights."""

import jax.numpy as jnp
import numpy as np

from elva_jax.evaluation.weights import weights_hash

PARAMS = {"elva": {"a": np.arange(6.0).reshape(2, 3), "b": np.zeros(3, np.int32)}, "guidance": {}}


def test_the_hash_is_of_names_shapes_types_and_values():
    elva, found = PARAMS["elva"], weights_hash(PARAMS)
    assert found == weights_hash(elva) == weights_hash(dict(reversed(elva.items())))
    assert len(found) == 16
    int(found, 16)
    changed = elva["a"].copy()
    changed[1, 2] = np.nextafter(changed[1, 2], 9)
    others = [
        elva | {"a": changed},
        elva | {"a": elva["a"].reshape(3, 2)},
        elva | {"a": elva["a"].astype(np.float32)},
        {"a": elva["a"], "c": elva["b"]},
    ]
    assert len({found, *map(weights_hash, others)}) == 5


def test_bfloat16_on_the_device_has_a_hash():
    tree = {"w": jnp.ones((2, 2), jnp.bfloat16)}
    assert weights_hash(tree) == weights_hash({"w": np.asarray(tree["w"])})
