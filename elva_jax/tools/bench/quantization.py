"""`elva bench quantization`: what int8 and int4 weights change in a model's answers."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from elva_jax.commands import flags
from elva_jax.tools.bench.table import text_table
from elva_jax.tools.bench.timing import machine
from elva_jax.utils import numbers

if TYPE_CHECKING:
    from elva_jax.evaluation.questions import Video
    from elva_jax.inference.model import ElvaModel
    from elva_jax.video.clip import Visual

HELP = """\
Compares a model whose weights are quantized with the same model in its compute type, on the
questions of a built data set: the Kullback-Leibler divergence of the distributions over the
vocabulary at every token of the right answers, how often both find the same token likeliest, and
the accuracies of `elva evaluate`.

example:
  elva bench quantization --checkpoint runs/tiny --split test --json quantization.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this bench."""
    flags.add_checkpoint(parser)
    add, default = parser.add_argument, "(default: %(default)s)"
    text = f"built data set with questions and options {default}"
    add("--data", default="moving_shapes/easy", metavar="NAME", help=text)
    add("--data-dir", metavar="DIR", help="where data sets are built (default: as in the run)")
    add("--split", default="test", help=f"split of the data set {default}")
    add("--limit", type=flags.positive, metavar="N", help="use the first N videos (default: all)")
    text = "int8 or int4; may be given several times (default: both)"
    add("--weights", action="append", choices=("int8", "int4"), help=text)
    add("--batch-size", type=numbers.ROWS, default=32, metavar="N", help=f"videos {default}")
    flags.add_no_merging(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Asks the model with each kind of weights."""
    import elva_jax
    from elva_jax.evaluation.questions import read_split

    elva_jax.enable_compilation_cache()
    plain = elva_jax.load(args.checkpoint)
    data_dir = Path(args.data_dir or plain.config.data_dir)
    videos = read_split(args.data, args.split, data_dir, args.limit)
    dtype = plain.model_config.dtype
    rows = [{"weights": dtype, **_facts(plain, args, data_dir)}]
    for scheme in args.weights or ("int8", "int4"):
        small = elva_jax.load(args.checkpoint, weights=scheme)
        found = list(_divergences(plain, small, videos, args))
        same = np.concatenate([same for _, same in found])
        apart = np.concatenate([apart for apart, _ in found])
        rows.append(
            {
                "weights": scheme,
                **_facts(small, args, data_dir),
                "kl": {
                    "mean": float(apart.mean()),
                    "p99": float(np.quantile(apart, 0.99)),
                    "max": float(apart.max()),
                },
                "same_token": float(same.mean()),
                "tokens": len(apart),
            }
        )
    return {
        "machine": machine(),
        "data": {"name": args.data, "split": args.split, "videos": len(videos)},
        "questions": sum(len(video.questions) for video in videos),
        "merging": args.merging,
        "rows": rows,
    }


def show(report: dict[str, Any]) -> str:
    """Formats the report."""
    first, lines = report["rows"][0], []
    for row in report["rows"]:
        apart, kl = ["-"] * 4, row.get("kl")
        if kl:
            apart = [*(f"{kl[name]:.2e}" for name in kl), f"{100 * row['same_token']:.2f}"]
        scores = []
        for column, score in row["macro"].items():
            change = 100 * (score["accuracy"] - first["macro"][column]["accuracy"])
            scores += [f"{100 * score['accuracy']:.2f}", f"{change:+.2f}" if kl else "-"]
        lines.append([row["weights"], f"{row['bytes'] / 2**20:.2f}", *apart, *scores])
    columns = ["weights", "MiB", "KL mean", "KL 99 %", "KL max", "same token %"]
    for name in first["macro"]:
        columns += [f"{name} %", "change"]
    tokens = max((row.get("tokens", 0) for row in report["rows"]), default=0)
    data = report["data"]
    return "\n".join(
        [
            f"{data['name']}, {data['split']}: {data['videos']} videos, {report['questions']}"
            f" questions, {tokens} tokens of answers; KL in nats",
            text_table(columns, lines),
        ]
    )


def _facts(model: ElvaModel, args: argparse.Namespace, data_dir: Path) -> dict[str, Any]:
    """Bytes of the weights, and macro accuracies of likelihoods and of written answers."""
    import elva_jax
    from elva_jax.inference.quantization import weights_bytes

    config = elva_jax.EvalConfig(
        dataset=args.data,
        split=args.split,
        data_dir=data_dir,
        limit=args.limit,
        merging=args.merging,
        batch_size=args.batch_size,
        letters=False,
        baselines=False,
    )
    macro = elva_jax.evaluate(model, config).to_dict()["macro"]
    columns = {"likelihood": "likelihood", "open": "written"}
    return {
        "bytes": weights_bytes(model.engine.weights),
        "macro": {shown: macro[name] for name, shown in columns.items()},
    }


def _divergences(
    plain: ElvaModel, small: ElvaModel, videos: Sequence[Video], args: argparse.Namespace
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Per batch and answer token: KL(plain || small), and whether the likeliest token is equal."""
    import jax
    import jax.numpy as jnp

    from elva_jax.inference.batching import Lengths

    @jax.jit
    def compare(left, right):
        p, q = jax.nn.log_softmax(left), jax.nn.log_softmax(right)
        same = jnp.argmax(p, axis=-1) == jnp.argmax(q, axis=-1)
        return jnp.sum(jnp.exp(p) * (p - q), axis=-1), same

    lengths = {model: Lengths(steady=True) for model in (plain, small)}
    for start in range(0, len(videos), args.batch_size):
        batch = _readable(plain, videos[start : start + args.batch_size])
        if not batch:
            continue
        left, valid = answer_logits(plain, batch, lengths[plain], merging=args.merging)
        right, _ = answer_logits(small, batch, lengths[small], merging=args.merging)
        apart, same = compare(left, right)
        yield np.asarray(apart, np.float64)[valid], np.asarray(same)[valid]


def _readable(model: ElvaModel, videos: Sequence[Video]) -> list[tuple[Visual, Video]]:
    """The videos that can be read, which evaluations report."""
    from elva_jax.errors import VideoError

    found = []
    for video in videos:
        with contextlib.suppress(VideoError):
            found.append((model.read_media(video.source, name=video.key), video))
    return found


def answer_logits(
    model: ElvaModel, videos: Sequence[tuple[Visual, Video]], lengths: Any, *, merging: bool
) -> tuple[Any, np.ndarray]:
    """Logits [B, G, M, V] where the tokens of the right answers are predicted, and which count."""
    from elva_jax.data.conversation import answer_ids
    from elva_jax.inference.batching import split_prompt
    from elva_jax.inference.scoring import Trees, option_tree

    prefilled = model.prefill([(seen,) for seen, _ in videos], merging=merging, lengths=lengths)
    trees = []
    for (seen, video), start in zip(videos, prefilled.prefix_tokens, strict=True):
        row = []
        for item in video.questions:
            question = split_prompt(model.prompt_parts(item.text, (seen,))).question
            row.append(option_tree(question, [answer_ids(item.answer, model.tokenizer)], start))
        trees.append(row)
    flat = [tree for row in trees for tree in row]
    batch, groups = len(prefilled.prefix.length), lengths("questions", max(map(len, trees)), 1)
    queries = lengths("tree", max(len(tree.token) for tree in flat))
    targets = lengths("answer tokens", max(len(tree.source) for tree in flat))
    token, position = (np.zeros((batch, groups, queries), np.int32) for _ in range(2))
    branch = np.full((batch, groups, queries), -1, np.int32)
    source = np.zeros((batch, groups, targets), np.int32)
    valid = np.zeros((batch, groups, targets), bool)
    for b, row in enumerate(trees):
        for g, tree in enumerate(row):
            for array, name in ((token, "token"), (position, "position"), (branch, "branch")):
                array[b, g, : len(tree.token)] = getattr(tree, name)
            source[b, g, : len(tree.source)] = tree.source
            valid[b, g, : len(tree.source)] = True
    prefix = prefilled.prefix
    padded = Trees(token, position, branch, source, prefix.stretch)
    return _program()(prefix.config, model.engine.weights, prefix.layers, padded), valid


@cache
def _program() -> Any:
    import jax

    from elva_jax.inference.scoring import branch_logits

    return jax.jit(branch_logits, static_argnums=0)
