"""Shared parts of the vision towers: patches, parameter tables, pieces of a transformer block.

A tower is a stack of L pre-norm blocks over the T tokens of an image, without a mask:

    x <- x + out(attention(query(norm1(x)), key(norm1(x)), value(norm1(x))))
    x <- x + mlp(norm2(x))

The parameters of all blocks are stacked, [L, ...], and a loop runs over them. ELVA learns from the
input of the last block (`penultimate`), so that block runs after the loop:

    patches -> block 0 -> ... -> block L-2 -> penultimate -> block L-1 -> final norm -> last
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Num

from elva_jax.config.schema import TeacherConfig
from elva_jax.errors import ConfigError
from elva_jax.utils.arrays import AnyArray

LAYER_NORM_EPS = 1e-6  # of every tower but LanguageBind's
ZEROS, ONES = nn.initializers.zeros_init(), nn.initializers.ones_init()
HEADS = ("heads", "head_dim")  # logical axes

Params = Mapping[str, AnyArray]


class VisionFeatures(NamedTuple):
    """Features of n images or clips; P = grid * grid patches in row-major order.

    Class and register tokens are left out. Clips have T = num_frames / tubelet steps in time.
    """

    penultimate: Float[Array, "n *T P C"]  # input of the last block, not normalized
    last: Float[Array, "n *T P C"]  # after the last block and the final norm
    pooled: Float[Array, "n C"]  # one vector per image or clip, pooled as the tower was trained


def patchify(pixels: Num[AnyArray, "n H W 3"], patch: int, grid: int) -> Num[AnyArray, "n P K"]:
    """Row-major patches; inside a patch rows, columns, channels. Pixels beyond the grid are cut."""
    whole = pixels[:, : grid * patch, : grid * patch]
    return rearrange(whole, "n (i p) (j q) c -> n (i j) (p q c)", p=patch, q=patch)


def unpatchify(
    patches: Num[AnyArray, "n P K"], patch: int, size: int
) -> Num[Array, "n {size} {size} 3"]:
    """Back from `patchify` to images, with zeros beyond the last whole patch."""
    images = rearrange(
        patches, "n (i j) (p q c) -> n (i p) (j q) c", i=size // patch, p=patch, q=patch
    )
    beyond = (0, size % patch)
    return jnp.pad(images, ((0, 0), beyond, beyond, (0, 0)))


def head_dim_of(config: TeacherConfig) -> int:
    """Width of a tower's heads.

    Raises:
      ConfigError: the heads do not divide the width.
    """
    if config.hidden_size % config.num_heads:
        raise ConfigError(
            f"teacher.hidden_size {config.hidden_size} does not divide into"
            f" teacher.num_heads {config.num_heads}"
        )
    return config.hidden_size // config.num_heads


class ParamTable(dict[str, AnyArray]):
    """Declares float32 parameters of a module, and holds them by name.

    With `num_layers` every one is a stack over the layers. The order of declaration seeds the
    initializers: it must not change.
    """

    def __init__(self, module: nn.Module, num_layers: int | None = None):
        super().__init__()
        self._module = module
        self._stack = ((), ()) if num_layers is None else ((num_layers,), ("layers",))

    def add(self, name: str, shape: tuple[int, ...], axes: tuple, init: Any) -> AnyArray:
        """One parameter with logical axis names."""
        sizes, names = self._stack
        boxed = nn.with_logical_partitioning(init, (*names, *axes))
        value: Any = self._module.param(name, boxed, (*sizes, *shape), jnp.float32)
        self[name] = value
        return value

    def norm(self, name: str, size: int, axis: str | None = "embed") -> None:
        """Scale and bias of a layer norm."""
        self.add(f"{name}_scale", (size,), (axis,), ONES)
        self.add(f"{name}_bias", (size,), (axis,), ZEROS)

    def dense(
        self, name: str, shape: tuple[int, ...], axes: tuple, init: Any, *, contracted: int = 1
    ) -> None:
        """A kernel, and a bias of its output dimensions: all but the first `contracted` ones."""
        self.add(f"{name}_kernel", shape, axes, init)
        self.add(f"{name}_bias", shape[contracted:], axes[contracted:], ZEROS)


def embed_patches(
    params: ParamTable,
    pixels: Float[AnyArray, "n H W 3"],
    config: TeacherConfig,
    *,
    use_bias: bool = True,
) -> Float[Array, "n P C"]:
    """Pixels to patch tokens, by one linear map whose parameters it declares."""
    shape, axes = (config.patch_size**2 * 3, config.hidden_size), ("patch", "embed")
    init = nn.initializers.lecun_normal()
    if use_bias:
        params.dense("patch", shape, axes, init)
    else:
        params.add("patch_kernel", shape, axes, init)
    patches = jnp.asarray(patchify(pixels, config.patch_size, config.grid))
    return linear(patches, params, "patch")


def position_embedding(
    params: ParamTable, count: int, width: int
) -> Float[AnyArray, "{count} {width}"]:
    """Declares a learned table."""
    init = nn.initializers.normal(1 / math.sqrt(width))
    return params.add("position_embedding", (count, width), (None, "embed"), init)


def prepend_class_token(
    params: ParamTable, tokens: Float[Array, "n P C"]
) -> Float[Array, "n 1+P C"]:
    """Declares a learned token and puts it before all others."""
    n, _, width = tokens.shape
    token = params.add("class_token", (1, width), (None, "embed"), nn.initializers.normal(0.02))
    first = jnp.broadcast_to(token.astype(tokens.dtype)[None], (n, 1, width))
    return jnp.concatenate([first, tokens], axis=1)


def standardize(
    pixels: Float[AnyArray, "*batch 3"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Array, "*batch 3"]:
    """Pixels in [-1, 1] to float32 with this mean and deviation of RGB in [0, 1] taken out."""
    shape = (1,) * (pixels.ndim - 1) + (3,)
    center, scale = (jnp.array(values).reshape(shape) for values in (mean, std))
    return ((jnp.asarray(pixels, jnp.float32) + 1) / 2 - center) / scale


def refuse_other_clips(shape: tuple[int, ...], config: TeacherConfig, tower: str) -> None:
    """Raises ConfigError for pixels that are not the images or clips of a tower."""
    size, frames = config.image_size, config.num_frames
    wanted = (*(() if frames == 1 else (frames,)), size, size, 3)
    if shape[1:] != wanted:
        raise ConfigError(
            f"{tower} was given pixels of shape {shape[1:]};"
            f" teacher.num_frames and teacher.image_size want {wanted}"
        )


def run_layers(
    block: Callable[[jax.Array, Params], jax.Array], x: Float[Array, "n T C"], params: Params
) -> tuple[Float[Array, "n T C"], Float[Array, "n T C"]]:
    """The last block's input and output, for stacked parameters."""
    stacks = {name: jnp.asarray(leaf) for name, leaf in params.items()}
    last = len(next(iter(stacks.values()))) - 1

    @_recomputed
    def body(x, index):
        # Indexed inside the loop: a slice of all layers but the last would be a copy of them.
        return _apply(block, x, {name: stack[index] for name, stack in stacks.items()}), None

    before, _ = jax.lax.scan(body, x, jnp.arange(last))
    return before, body(before, last)[0]


def run_blocks(
    block: Callable[[jax.Array, Params], jax.Array], x: Float[Array, "n T C"], params: Params
) -> Float[Array, "n T C"]:
    """The last block's output, for stacked parameters."""

    @_recomputed
    def body(x, layer):
        return _apply(block, x, layer), None

    return jax.lax.scan(body, x, dict(params))[0]


@contextlib.contextmanager
def recomputed_blocks() -> Iterator[None]:
    """Towers that are traced inside keep the input of each block only, for the backward pass."""
    token = _recompute.set(True)
    try:
        yield
    finally:
        _recompute.reset(token)


_recompute = contextvars.ContextVar("recompute", default=False)


def _recomputed(body: Callable[..., Any]) -> Callable[..., Any]:
    # A scan keeps the compiler from joining what is computed twice, so that needs no barrier.
    return jax.checkpoint(body, prevent_cse=False) if _recompute.get() else body


def _apply(
    block: Callable[[jax.Array, Params], jax.Array], x: jax.Array, layer: Params
) -> jax.Array:
    return nn.with_logical_constraint(block(x, layer), ("batch", None, "embed"))


def linear(x: Float[Array, "*batch I"], params: Params, name: str) -> Float[Array, "*batch O"]:
    """Multiplies by the kernel [I, O] of that name and adds its bias, which may be missing."""
    y = x @ params[f"{name}_kernel"].astype(x.dtype)
    return _add_bias(y, params[f"{name}_bias"]) if f"{name}_bias" in params else y


def to_heads(x: Float[Array, "*batch C"], params: Params, name: str) -> Float[Array, "*batch H D"]:
    """Projects to heads by the kernel [C, H, D] of that name; its bias may be missing."""
    y = jnp.einsum("...c,chd->...hd", x, params[f"{name}_kernel"].astype(x.dtype))
    return _add_bias(y, params[f"{name}_bias"]) if f"{name}_bias" in params else y


def from_heads(
    x: Float[Array, "*batch H D"], params: Params, name: str = "out"
) -> Float[Array, "*batch C"]:
    """Projects attended values of all heads by the kernel [H, D, C] of that name."""
    y = jnp.einsum("...hd,hdc->...c", x, params[f"{name}_kernel"].astype(x.dtype))
    return _add_bias(y, params[f"{name}_bias"])


def _add_bias(x: jax.Array, bias: AnyArray) -> jax.Array:
    # The explicit shape, because tests forbid implicit rank promotion.
    return x + bias.astype(x.dtype).reshape((1,) * (x.ndim - bias.ndim) + bias.shape)


def layer_norm(
    x: Float[Array, "*batch C"], params: Params, name: str, eps: float = LAYER_NORM_EPS
) -> Float[Array, "*batch C"]:
    """The layer norm of that name, in float32 whatever the compute type."""
    scale, bias = params[f"{name}_scale"], params[f"{name}_bias"]
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    shape = (1,) * (x.ndim - 1) + scale.shape
    return (y * scale.reshape(shape) + bias.reshape(shape)).astype(x.dtype)


def to_pixels(frames: Num[AnyArray, "*batch 3"]) -> Float[AnyArray, "*batch 3"]:
    """uint8 to float32 in [-1, 1], the input of every vision tower."""
    return frames.astype(jnp.float32) / 127.5 - 1.0
