"""Vision towers by name, as teachers of the guidance losses (Table 4) and as encoders of MERV.

`real(name)` has the sizes of the published weights, and `tiny(name)` those of `configs/tiny.py`.
A `_video` tower is the same one, trained further on videos with captions.
"""

from elva_jax.config import schema

L14 = dict(patch_size=14, hidden_size=1024, intermediate_size=4096, num_layers=24, num_heads=16)
B16 = dict(patch_size=16, hidden_size=768, intermediate_size=3072, num_layers=12, num_heads=12)
REAL = {
    "siglip": dict(init_from="checkpoints/siglip-so400m-patch14-384"),
    "eva_clip": dict(
        kind="eva_clip",
        init_from="checkpoints/eva01-clip-g-14",
        image_size=224,
        patch_size=14,
        hidden_size=1408,
        intermediate_size=6144,
        num_layers=40,
        num_heads=16,
    ),
    "dinov2": dict(
        kind="dinov2",
        init_from="checkpoints/dinov2-with-registers-large",
        image_size=224,
        pretrained_image_size=518,
        num_registers=4,
        activation="gelu",
        **L14,
    ),
    "vivit": dict(
        kind="vivit",
        init_from="checkpoints/vivit-b-16x2-kinetics400",
        image_size=224,
        num_frames=32,
        tubelet=2,
        features="last",
        **B16,
    ),
    "languagebind": dict(
        kind="languagebind",
        init_from="checkpoints/languagebind-video-merge",
        image_size=224,
        num_frames=8,
        activation="gelu",
        **L14,
    ),
    "hiera": dict(
        kind="hiera",
        init_from="checkpoints/hiera_base_16x224",
        image_size=224,
        patch_size=32,
        hidden_size=768,
        intermediate_size=3072,
        num_layers=24,
        num_heads=8,
        activation="gelu",
        num_frames=16,
        tubelet=2,
        stages=(2, 3, 16, 3),
        features="last",
    ),
}
TINY = {
    "siglip": {},
    "eva_clip": dict(kind="eva_clip"),
    "dinov2": dict(kind="dinov2", num_registers=2, activation="gelu"),
    "vivit": dict(kind="vivit", num_frames=4, tubelet=2, features="last"),
    "languagebind": dict(kind="languagebind", num_frames=4, activation="gelu"),
    "hiera": dict(
        kind="hiera",
        patch_size=32,
        num_layers=7,
        num_heads=8,
        activation="gelu",
        num_frames=4,
        tubelet=2,
        stages=(1, 2, 2, 2),
        features="last",
    ),
}
VIDEO = "_video"
TOWERS = (*REAL, f"siglip{VIDEO}", f"eva_clip{VIDEO}")


def real(name: str) -> schema.ConfigDict:
    """A tower with the sizes of its published weights, which are read from checkpoints/."""
    t = schema.tower()
    t.update(REAL[name.removesuffix(VIDEO)])
    t.dtype = "bfloat16"
    if name.endswith(VIDEO):
        t.init_from += "-video"
    return t


def tiny(name: str) -> schema.ConfigDict:
    """A tower of 64 px with an 8 x 8 grid, a Hiera with 2 x 2."""
    t = schema.tower()
    t.update(
        image_size=64,
        patch_size=8,
        hidden_size=64,
        intermediate_size=192,
        num_layers=3,
        num_heads=4,
        text_layers=2,
        text_length=32,
    )
    t.update(TINY[name.removesuffix(VIDEO)])
    return t
