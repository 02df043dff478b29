"""Real records of moving_shapes, one with a broken video, and a tiny model with random weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds

from elva_jax.config import schema
from elva_jax.config.serialize import freeze
from elva_jax.inference.model import ElvaModel
from elva_jax.models.elva import Elva
from elva_jax.tools.datasets.moving_shapes import records
from elva_jax.tools.datasets.moving_shapes.tokenizer import build_for_moving_shapes
from elva_jax.video.layout import Clip, Text, TokenLayout, build_layout

RECORDS = 7
BROKEN = 5


class MovingShapes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Records as the real builder writes them; the media of one are junk."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="small", version=VERSION, description="one is broken")
    ]
    name = "moving_shapes"
    url_infos = {}  # noqa: RUF012 (nothing to download)

    def _info(self):
        text, scalar = tfds.features.Text(), tfds.features.Scalar(np.object_)
        features = tfds.features.FeaturesDict(
            {"id": text, "media": scalar, "kind": text, "annotation": scalar}
        )
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        test = [records.record_of("easy", 0, "test", k, RECORDS) for k in range(RECORDS)]
        test[BROKEN]["media"] = b"junk"
        return {"test": enumerate(test)}

    def _generate_examples(self):
        raise AssertionError("splits are given as iterables")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    MovingShapes(config="small", data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture(scope="session")
def generator(data_dir, tmp_path_factory):
    tokenizer = build_for_moving_shapes(
        tmp_path_factory.mktemp("tokenizer"), ("easy",), vocab_size=512, scenes=60
    )
    c = schema.base()
    c.data_dir = str(data_dir)
    c.model.update(
        vocab_size=512, hidden_size=32, intermediate_size=32, num_layers=2, num_heads=2,
        num_kv_heads=1, head_dim=16, rope_theta=100.0,
        patch_size=16, patch_width=16, dtype="float32", max_position=512,
        merge_layers=(1,), merge_policies=("threshold",), merge_thresholds=(0.8,),
        merge_ratios=(1.0,),
    )  # fmt: skip
    c.stages.video = schema.stage()
    c.stages.video.data.update(num_frames=3, longest_edge=48, system_prompt="")
    c.curriculum = ("video",)
    model, rng = Elva(freeze(c).model), np.random.default_rng(1)
    layout = TokenLayout(*(field[None] for field in build_layout([Text((1,)), Clip(((1, 1),))])))
    shapes = nn.meta.unbox(
        jax.eval_shape(model.init, jax.random.key(1), np.zeros((1, 1, 768), np.uint8), layout)
    )["params"]
    return ElvaModel(
        c,
        jax.tree.map(
            lambda leaf: jnp.asarray(rng.normal(0.02, 0.12, leaf.shape), jnp.float32), shapes
        ),
        tokenizer,
    )
