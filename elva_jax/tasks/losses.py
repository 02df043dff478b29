"""The loss terms (paper, section 3.3), in float32; each is 0 on an empty set.

    L_gen   mean over answer tokens of -log p(next token)
    L_tube  mean over tubes of |s - t|^2 = 2 (1 - cos(s, t)), with s and t the normalized means
            over time of the student's and the teacher's features at one grid position
    L_con   mean over frames i of -(log softmax_j(s_i t_j / T)_i + log softmax_j(s_j t_i / T)_i) / 2
    L_sig   mean over images i of sum_j -log sigmoid(+-(s_i t_j exp(scale) + bias)), + where i = j

            frame 1     frame 2     frame 3
             a  b        a  b        a  b       the a's are one tube, the b's another
             c  d        c  d        c  d       each frame has one <FRAME> token for L_con

Arrays are global: under jit the mesh decides what is gathered.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from elva_jax.errors import ConfigError
from elva_jax.ops.normalize import l2_normalize
from elva_jax.parallel.sharding import activation_spec, mesh_axes
from elva_jax.utils.arrays import AnyArray
from elva_jax.video.layout import Kind, TokenLayout

Terms = dict[str, jax.Array]  # scalars to report beside a loss
CHUNK_LOGITS = 2**27  # float32 logits of one row that may exist at once; longer rows are cut


def generation_loss(
    hidden_BxSxD: jax.Array,
    head_fn: Callable[[jax.Array], jax.Array],
    target_BxS: AnyArray,
    weight_BxS: AnyArray,
    chunk: int = 0,
) -> tuple[jax.Array, Terms]:
    """Next-token cross-entropy, averaged over the weights of the whole global batch.

    Args:
      hidden_BxSxD: features after the final norm.
      head_fn: hidden [B, s, D] -> logits [B, s, V]; pure. If it is a `jax.tree_util.Partial` over
        the arrays that it reads, these are gathered on every device once, and each device works on
        its own tokens. XLA's partitioner would move weights and gradients for every chunk.
      target_BxS: int32, the next token's id.
      weight_BxS: float32, 0 where nothing is to be learned.
      chunk: tokens per row whose logits exist at once, recomputed in the backward pass; 0: all.

    Returns:
      the loss; and `accuracy`, the weighted share of tokens whose most likely next token is right,
      and `target_weight`, the sum of the weights.
    """

    def sums(head_fn, hidden_BxSxD, target_BxS, weight_BxS):
        if chunk and chunk < hidden_BxSxD.shape[1]:
            return _chunked_sums(hidden_BxSxD, head_fn, target_BxS, weight_BxS, chunk)
        return _token_sums(head_fn(hidden_BxSxD), target_BxS, weight_BxS)

    tokens = activation_spec("batch", "seq")
    axes = mesh_axes(*tokens)  # none: XLA refuses a manual region that splits nothing

    def shard(head_fn, *arrays):
        # Marked as varying outside of any loop, so that its gradient is summed over devices once.
        own = jax.tree.map(lambda leaf: jax.lax.pcast(leaf, axes, to="varying"), head_fn)
        return jax.lax.psum(sums(own, *arrays), axes)

    run = sums
    if axes and isinstance(head_fn, jax.tree_util.Partial):
        specs = (PartitionSpec(), tokens, tokens, tokens)
        run = jax.shard_map(shard, in_specs=specs, out_specs=PartitionSpec(), axis_names=set(axes))
    loss, correct, weight = run(head_fn, hidden_BxSxD, target_BxS, weight_BxS)
    return _ratio(loss, weight), {"accuracy": _ratio(correct, weight), "target_weight": weight}


def token_scores(
    hidden_BxSxD: jax.Array,
    head_fn: Callable[[jax.Array], jax.Array],
    target_BxS: AnyArray,
    chunk: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood of every target [B, S], and whether it is the likeliest token.

    Arguments as for `generation_loss`, whose terms these are before weights; without a gradient.
    """
    if not chunk or chunk >= hidden_BxSxD.shape[1]:
        return _scores(head_fn(hidden_BxSxD), target_BxS)
    batch, length = target_BxS.shape
    parts = _split(hidden_BxSxD, chunk), _split(target_BxS, chunk)
    scores = jax.lax.map(lambda part: _scores(head_fn(part[0]), part[1]), parts)

    def join(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x, 0, 2).reshape(batch, -1)[:, :length]

    return join(scores[0]), join(scores[1])


def _scores(logits_BxSxV: jax.Array, target_BxS: AnyArray) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihoods and hits of every token."""
    logits_BxSxV = logits_BxSxV.astype(jnp.float32)
    ids_1x1xV = jnp.arange(logits_BxSxV.shape[-1])[None, None, :]
    # A masked sum, not a gather: it stays local where the vocabulary is sharded.
    chosen_BxS = jnp.sum(jnp.where(ids_1x1xV == target_BxS[:, :, None], logits_BxSxV, 0.0), axis=-1)
    nll_BxS = jax.nn.logsumexp(logits_BxSxV, axis=-1) - chosen_BxS
    return nll_BxS, jnp.argmax(logits_BxSxV, axis=-1) == target_BxS


def head_chunk(length: int, vocab_size: int) -> int:
    """Tokens of a row whose logits may exist at once; 0: all."""
    if length * vocab_size <= CHUNK_LOGITS:
        return 0
    return max(CHUNK_LOGITS // vocab_size // 64, 1) * 64  # so that mesh.context divides it


def _token_sums(
    logits_BxSxV: jax.Array, target_BxS: AnyArray, weight_BxS: AnyArray
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Weighted sums of the negative log-likelihood, of hits, and of the weights."""
    nll_BxS, hit_BxS = _scores(logits_BxSxV, target_BxS)
    weight_BxS = weight_BxS.astype(jnp.float32)
    learned_BxS = weight_BxS > 0
    return (
        jnp.sum(jnp.where(learned_BxS, nll_BxS * weight_BxS, 0.0)),
        jnp.sum(jnp.where(learned_BxS & hit_BxS, weight_BxS, 0.0)),
        jnp.sum(weight_BxS),
    )


def _chunked_sums(
    hidden_BxSxD: jax.Array,
    head_fn: Callable[[jax.Array], jax.Array],
    target_BxS: AnyArray,
    weight_BxS: AnyArray,
    chunk: int,
) -> tuple[jax.Array, ...]:
    """`_token_sums` of each chunk in turn."""

    @jax.checkpoint
    def one(part):
        hidden, target, weight = part
        return _token_sums(head_fn(hidden), target, weight)

    arrays = (hidden_BxSxD, target_BxS, weight_BxS)
    sums = jax.lax.map(one, tuple(_split(array, chunk) for array in arrays))
    return tuple(jnp.sum(values) for values in sums)


def _split(array: AnyArray, chunk: int) -> jax.Array:
    """Cuts [B, S, …] into [count, B, chunk, …], with zeros at the end.

    Chunk i is tokens i, i + count, …: a mesh that splits sequences then splits every chunk.
    """
    batch, length = array.shape[:2]
    count = -(-length // chunk)
    array = jnp.pad(array, ((0, 0), (0, count * chunk - length)) + ((0, 0),) * (array.ndim - 2))
    return jnp.moveaxis(array.reshape(batch, chunk, count, *array.shape[2:]), 2, 0)


def tube_loss(
    student_BxSxC: jax.Array,
    teacher_BxSxC: jax.Array,
    layout: TokenLayout,
    *,
    reduction: str = "sum",
    temporal: str = "mean",
) -> tuple[jax.Array, Terms]:
    """Tube-wise alignment: squared distance of L2-normalized features at the same grid position.

    Args:
      student_BxSxC: features at every token, through the tube head; only those of patches count.
      teacher_BxSxC: the teacher's features at every patch (`ops.pooling.adaptive_average_pool`);
        no gradient flows into them.
      layout: fields [B, S] of the same tokens.
      reduction: over channels; "sum" (twice 1 - cosine) or "mean" (C times smaller).
      temporal: "mean" averages both over the frames of a tube first; "none" compares patches.

    Returns:
      the mean over all tubes (or patches) of the global batch; and `tube_cosine`, the mean cosine.

    Raises:
      ConfigError: an unknown option.
    """
    if reduction not in ("sum", "mean"):
        raise ConfigError(f"loss.tube_reduction: {reduction!r} is unknown; use sum or mean")
    if temporal not in ("mean", "none"):
        raise ConfigError(f"loss.tube_temporal: {temporal!r} is unknown; use mean or none")
    valid_BxS = layout.kind == Kind.PATCH
    # Masked here too, so that the features of other tokens stay out of the gradient.
    student_BxSxC = jnp.where(valid_BxS[:, :, None], student_BxSxC.astype(jnp.float32), 0.0)
    teacher_BxSxC = jax.lax.stop_gradient(teacher_BxSxC).astype(jnp.float32)
    if temporal == "mean":
        student_BxSxC, _ = _tube_means(student_BxSxC, layout.tube, valid_BxS)
        teacher_BxSxC, valid_BxS = _tube_means(teacher_BxSxC, layout.tube, valid_BxS)
    student_BxSxC, teacher_BxSxC = l2_normalize(student_BxSxC), l2_normalize(teacher_BxSxC)
    over_channels = jnp.sum if reduction == "sum" else jnp.mean
    distance_BxS = over_channels(jnp.square(student_BxSxC - teacher_BxSxC), axis=-1)
    cosine_BxS = jnp.sum(student_BxSxC * teacher_BxSxC, axis=-1)
    return _masked_mean(distance_BxS, valid_BxS), {
        "tube_cosine": _masked_mean(cosine_BxS, valid_BxS)
    }


def _tube_means(
    x_BxSxC: jax.Array, tube_BxS: AnyArray, valid_BxS: AnyArray
) -> tuple[jax.Array, jax.Array]:
    """Means over the valid tokens of each tube, at the tube's number; and which numbers have any.

    A row has at most S tubes.
    """
    length = tube_BxS.shape[1]

    def one(x_SxC, tube_S, valid_S):
        tube_S = jnp.where(valid_S, tube_S, length)
        total_SxC = jnp.zeros_like(x_SxC).at[tube_S].add(x_SxC, mode="drop")
        count_S = jnp.zeros(length, jnp.float32).at[tube_S].add(1.0, mode="drop")
        return total_SxC / jnp.maximum(count_S, 1.0)[:, None], count_S > 0

    return jax.vmap(one)(x_BxSxC, tube_BxS, valid_BxS)


def gather_frames(
    x_BxSxC: jax.Array, layout: TokenLayout, frames: int
) -> tuple[jax.Array, jax.Array]:
    """Features of the `<FRAME>` tokens, one slot per frame.

    Args:
      x_BxSxC: features at every token.
      layout: fields [B, S] of the same tokens.
      frames: F, slots per row; frames numbered F or more have none.

    Returns:
      [B, F, C], zeros without such a frame; and bool [B, F], which slots hold a frame.
    """

    def one(x_SxC, kind_S, frame_S):
        slot_S = jnp.where(kind_S == Kind.FRAME, frame_S, frames)
        index_S = jnp.arange(kind_S.shape[0], dtype=jnp.int32)
        index_F = jnp.full(frames, -1, jnp.int32).at[slot_S].set(index_S, mode="drop")
        valid_F = index_F >= 0
        return jnp.where(valid_F[:, None], x_SxC[jnp.maximum(index_F, 0)], 0), valid_F

    return jax.vmap(one)(x_BxSxC, jnp.asarray(layout.kind), jnp.asarray(layout.frame))


def contrastive_loss(
    student_BxFxC: jax.Array,
    teacher_BxFxC: jax.Array,
    valid_BxF: jax.Array,
    log_temperature: jax.Array,
) -> tuple[jax.Array, Terms]:
    """Frame-wise contrast: symmetric InfoNCE over all frames of the global batch.

    As in the paper, all other frames are negatives, even near-identical ones of the same video.

    Args:
      student_BxFxC: `<FRAME>` features (`gather_frames`) through the frame head.
      teacher_BxFxC: each frame's mean teacher features; no gradient flows into them.
      valid_BxF: which slots hold a frame.
      log_temperature: scalar, learned.

    Returns:
      the loss; and `frame_accuracy`, the share of frames whose own teacher features are the most
      similar, and `temperature`.
    """
    valid_M = valid_BxF.reshape(-1)
    student_MxC = l2_normalize(student_BxFxC.astype(jnp.float32)).reshape(valid_M.shape[0], -1)
    teacher_MxC = l2_normalize(jax.lax.stop_gradient(teacher_BxFxC).astype(jnp.float32)).reshape(
        valid_M.shape[0], -1
    )
    temperature = jnp.exp(log_temperature.astype(jnp.float32))
    logits_MxM = (
        jnp.einsum("mc,nc->mn", student_MxC, teacher_MxC, precision="highest") / temperature
    )
    own_M = jnp.sum(student_MxC * teacher_MxC, axis=-1) / temperature
    low = jnp.finfo(jnp.float32).min
    by_student_MxM = jnp.where(valid_M[None, :], logits_MxM, low)
    by_teacher_MxM = jnp.where(valid_M[:, None], logits_MxM, low)
    loss_M = (
        jax.nn.logsumexp(by_student_MxM, axis=1) + jax.nn.logsumexp(by_teacher_MxM, axis=0)
    ) / 2 - own_M
    hit_M = jnp.argmax(by_student_MxM, axis=1) == jnp.arange(valid_M.shape[0])
    metrics = {"frame_accuracy": _masked_mean(hit_M, valid_M), "temperature": temperature}
    return _masked_mean(loss_M, valid_M), metrics


def sigmoid_loss(
    image_NxC: jax.Array,
    text_NxC: jax.Array,
    log_scale: jax.Array,
    bias: jax.Array,
    mask_N: jax.Array | None = None,
) -> tuple[jax.Array, Terms]:
    """SigLIP's pairwise sigmoid loss (arXiv 2303.15343) over all pairs of the global batch.

    Pair (i, i) is positive, every other pair negative.

    Args:
      image_NxC: image features; normalized here.
      text_NxC: text features; normalized here.
      log_scale: scalar, logarithm of the logit scale.
      bias: scalar logit bias.
      mask_N: which images and texts count; None: all.

    Returns:
      the sum over pairs divided by the number of images; and `match_accuracy`, the share of images
      whose own text is the most similar.
    """
    count = image_NxC.shape[0]
    mask_N = jnp.ones(count, bool) if mask_N is None else mask_N.astype(bool)
    image_NxC = l2_normalize(image_NxC.astype(jnp.float32))
    text_NxC = l2_normalize(text_NxC.astype(jnp.float32))
    cosine_NxN = jnp.einsum("nc,mc->nm", image_NxC, text_NxC, precision="highest")
    logits_NxN = cosine_NxN * jnp.exp(log_scale) + bias
    sign_NxN = 2.0 * jnp.eye(count) - 1.0
    pair_NxN = mask_N[:, None] & mask_N[None, :]
    loss_N = jnp.sum(jnp.where(pair_NxN, -jax.nn.log_sigmoid(sign_NxN * logits_NxN), 0.0), axis=1)
    best_N = jnp.argmax(jnp.where(mask_N[None, :], cosine_NxN, -jnp.inf), axis=1)
    return _masked_mean(loss_N, mask_N), {
        "match_accuracy": _masked_mean(best_N == jnp.arange(count), mask_N)
    }


def _ratio(total: jax.Array, weight: jax.Array) -> jax.Array:
    """The quotient, 0 where the weight is 0."""
    return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1.0), 0.0)


def _masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over the mask, 0 where it is empty; values outside the mask may be non-finite."""
    return _ratio(jnp.sum(jnp.where(mask, values, 0.0)), jnp.sum(mask.astype(jnp.float32)))
