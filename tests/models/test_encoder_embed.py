"""The encoder-based model against tower, MLP, concatenation and decoder combined by hand."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from elva_jax.config import schema
from elva_jax.config.schema import Config, ModelConfig, TeacherConfig
from elva_jax.config.serialize import typed
from elva_jax.errors import ConfigError, LayoutError
from elva_jax.models.elva import Elva, dummy_inputs, with_merging
from elva_jax.models.qwen2 import Qwen2
from elva_jax.models.towers.common import patchify, unpatchify
from elva_jax.models.towers.siglip import SiglipVision
from elva_jax.ops.merging import MergeLayer, Merging
from elva_jax.video.hybrid import square_frame
from elva_jax.video.layout import Clip, Kind, Text, TokenLayout, build_layout, pack
from elva_jax.video.resize import LazyFrame
from elva_jax.video.resize import patchify as cut

LENGTH, PATCHES, VOCAB, LAYERS = 48, 36, 61, 2
# 25 is no multiple of 8: the last pixel of each side is dropped, as in so400m (384 = 27 * 14 + 6).
TOWER = TeacherConfig(
    image_size=25, patch_size=8, hidden_size=12, intermediate_size=16, num_layers=3, num_heads=2
)
CONFIG = with_merging(
    ModelConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_layers=LAYERS,
        num_heads=4,
        num_kv_heads=2,
        head_dim=4,
        rope_theta=10_000.0,
        tie_embeddings=False,
        max_position=128,
        patch_size=8,
        patch_embed="encoder",
        dtype="float32",
        tower=TOWER,
    ),
    Merging((MergeLayer(0, "threshold", 0.9999),)),
)
GRID = (3, 3)


@pytest.fixture(scope="module")
def params():
    shapes = nn.unbox(jax.eval_shape(Elva(CONFIG).init, jax.random.key(0), *dummy_inputs(CONFIG)))[
        "params"
    ]
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        return jnp.asarray(
            rng.normal(1.0 if "scale" in jax.tree_util.keystr(path) else 0.0, 0.25, leaf.shape),
            jnp.float32,
        )

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def forward(params):
    model = Elva(CONFIG)

    @jax.jit
    def run(patches, layout):
        out = model.apply({"params": params}, patches, layout)
        return model.apply({"params": params}, out.hidden, method="head")

    return run


def examples():
    """Parts and frames of a video between texts, an image in front, and text alone."""
    rng = np.random.default_rng(1)

    def words(count):
        return Text(tuple(int(i) for i in rng.integers(0, VOCAB, count)))

    frames = rng.integers(0, 256, (3, 20, 40, 3), dtype=np.uint8)
    video = [words(2), Clip((GRID, GRID), bare=True), words(3)]
    return [
        (video, frames[:2]),
        ([Clip((GRID,), bare=True), words(4)], frames[2:]),
        ([words(5)], frames[:0]),
    ]


def patches_of(frames):
    return [
        cut(
            [square_frame(LazyFrame.from_array(frame), TOWER.image_size, TOWER.patch_size)],
            TOWER.patch_size,
        )
        for frame in frames
    ]


def rows_of(*rows):
    """Packed rows; patches without a token are noise."""
    patches = np.random.default_rng(2).integers(
        0, 256, (len(rows), PATCHES, 8 * 8 * 3), dtype=np.uint8
    )
    for row, packed in zip(patches, rows, strict=True):
        own = [patch for _, frames in packed for patch in patches_of(frames)]
        row[: 9 * len(own)] = np.concatenate([np.zeros((0, 8 * 8 * 3), np.uint8), *own])
    layouts = [pack([build_layout(parts) for parts, _ in packed], LENGTH) for packed in rows]
    return patches, TokenLayout(*(np.stack(field) for field in zip(*layouts, strict=True)))


def composed(params):
    """Logits [S, V] of every example alone."""
    embed, (video, image, text) = params["patch_embed"], examples()
    squashed = (
        np.stack(
            [square_frame(LazyFrame.from_array(frame), 25, 1) for frame in (*video[1], *image[1])]
        ).astype(np.float32)
        / 127.5
        - 1
    )
    tower = jax.jit(
        lambda params, pixels: SiglipVision(TOWER).apply({"params": params}, pixels).penultimate
    )
    inner = np.asarray(tower(embed["tower"], squashed), np.float64) @ np.asarray(
        embed["fc1"]["kernel"]
    ) + np.asarray(embed["fc1"]["bias"])
    inner = 0.5 * inner * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
    visual = (
        inner @ np.asarray(embed["fc2"]["kernel"]) + np.asarray(embed["fc2"]["bias"])
    ).reshape(27, 16)
    table = np.asarray(params["decoder"]["embed_tokens"])

    @jax.jit
    def decode(params, x_1xSxD, segment):
        decoder, place = Qwen2(CONFIG), jnp.arange(LENGTH, dtype=jnp.int32)[None]
        x = decoder.apply({"params": params}, x_1xSxD, place, segment, 0, LAYERS, method="layers")
        return decoder.apply(
            {"params": params},
            decoder.apply({"params": params}, x, method="final_norm"),
            method="head",
        )[0]

    for (parts, _), seen in ((video, visual[:18]), (image, visual[18:]), (text, None)):
        x = np.concatenate(
            [seen if isinstance(part, Clip) else table[list(part.token_ids)] for part in parts]
        )
        padded, segment = np.zeros((1, LENGTH, 16), np.float32), np.zeros((1, LENGTH), np.int32)
        padded[0, : len(x)], segment[0, : len(x)] = x, 1
        yield np.asarray(decode(params["decoder"], padded, segment))[: len(x)]


def test_equals_tower_projector_and_decoder_put_together_by_hand(forward, params):
    """Whatever the packing and batching, and whatever patches without a token hold."""
    shown, wanted = examples(), list(composed(params))
    assert np.abs(wanted[0][-1] - wanted[1][-1]).max() > 0.1, (
        "weights too weak: the comparison would prove little"
    )
    for rows in ([(0, 1), (2,)], [(2, 1, 0), (1,)]):
        patches, layout = rows_of(*([shown[which] for which in row] for row in rows))
        logits = np.asarray(forward(patches, layout))
        for b, row in enumerate(rows):
            for segment, which in enumerate(row, start=1):
                np.testing.assert_allclose(
                    logits[b][layout.segment[b] == segment], wanted[which], atol=1e-5
                )


def test_patches_merge_along_their_tubes(params):
    """Two equal frames leave one token per grid position."""
    parts, frames = examples()[0]
    patches, layout = rows_of([(parts, frames[[0, 0]])])
    out = jax.jit(lambda *inputs: Elva(CONFIG).apply({"params": params}, *inputs, merging=True))(
        patches, layout
    )
    assert int((out.layout.kind == Kind.PATCH).sum()) == 9
    assert int((out.layout.kind != Kind.PAD).sum()) == 9 + 5


def test_unpatchify_is_the_way_back():
    images = np.random.default_rng(0).normal(size=(2, 25, 25, 3)).astype(np.float32)
    back = np.asarray(unpatchify(patchify(images, 8, 3), 8, 25))
    np.testing.assert_array_equal(back[:, :24, :24], images[:, :24, :24])
    assert not back[:, 24].any()
    assert not back[:, :, 24].any()


def test_pieces_of_frames_are_refused(params):
    patches, layout = rows_of([examples()[0]])
    with pytest.raises(LayoutError, match="35 patches are not whole frames of 9"):
        jax.eval_shape(
            lambda *inputs: Elva(CONFIG).apply({"params": params}, *inputs), patches[:, :35], layout
        )


def test_the_tower_is_the_teacher():
    c = schema.base()
    c.model.update(patch_embed="encoder", patch_size=8)
    c.teacher.update(
        image_size=25, patch_size=8, hidden_size=12, intermediate_size=16, num_layers=3, num_heads=2
    )
    made = typed(Config, c).model
    assert made.tower == TOWER
    assert made.frame_patches == 9
    alone = typed(ModelConfig, c.model)
    with pytest.raises(ConfigError, match=r"model\.patch_embed: encoder needs"):
        Elva(alone).init(jax.random.key(0), *dummy_inputs(alone))
    c.model.patch_embed = "video"
    assert typed(Config, c).model.tower is None
