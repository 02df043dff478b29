"""`elva bench pytorch`: the decoder beside transformers' Qwen2, on the same weights and tokens."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from elva_jax.errors import ConfigError
from elva_jax.tools.bench.arguments import add_dtype, add_repeats, counts, dtype_of
from elva_jax.tools.bench.table import text_table
from elva_jax.tools.bench.timing import Spread, interleaved, machine, milliseconds
from elva_jax.utils import numbers

if TYPE_CHECKING:
    import numpy as np

    from elva_jax.config.schema import ModelConfig
    from elva_jax.inference.params import Weights

HELP = """\
Runs a Qwen2 with random weights in JAX and in PyTorch: the time to the first token of a prompt, and
the tokens per second of a greedy answer.

examples:
  elva bench pytorch
  elva bench pytorch --hidden 1536 --intermediate 8960 --layers 28 --lengths 5120"""

SIZES = {
    "hidden": 768,
    "intermediate": 3072,
    "layers": 12,
    "heads": 12,
    "kv-heads": 2,
    "vocabulary": 32_000,
}
COLUMNS = (
    *("prompt", "first token ms", "PyTorch ms", "ratio"),
    *("tokens/s", "PyTorch's", "ratio of times", "same answer"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of this bench."""
    add, text = parser.add_argument, "tokens of the prompt (default: %(default)s)"
    add("--lengths", type=counts, default="256,1024,2560", metavar="S,S,…", help=text)
    text = "tokens of the answer (default: %(default)s)"
    add("--new-tokens", type=numbers.TOKENS, default=32, metavar="N", help=text)
    for name, size in SIZES.items():
        text = "of the model (default: %(default)s)"
        add(
            f"--{name}",
            type=numbers.whole(1, numbers.MOST_ROWS),
            default=size,
            metavar="N",
            help=text,
        )
    add_dtype(parser)
    add_repeats(parser, 5)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Times both at every length, and compares their answers.

    Raises:
      ConfigError: PyTorch is missing, or has no CUDA where JAX has a GPU.
    """
    import jax
    import numpy as np

    from elva_jax.config.schema import ModelConfig
    from elva_jax.tools.bench.random_model import random_weights

    try:
        import torch
    except ImportError:
        raise ConfigError(
            "elva bench pytorch needs PyTorch and transformers; install the extra `test`, "
            "or PyTorch for your GPU"
        ) from None
    on_gpu = jax.default_backend() == "gpu"
    if on_gpu and not torch.cuda.is_available():
        raise ConfigError("JAX sees a GPU, PyTorch does not; install PyTorch for CUDA")
    dtype = dtype_of(args)
    lengths = args.lengths
    config = ModelConfig(
        vocab_size=args.vocabulary,
        hidden_size=args.hidden,
        intermediate_size=args.intermediate,
        num_layers=args.layers,
        num_heads=args.heads,
        num_kv_heads=args.kv_heads,
        head_dim=args.hidden // args.heads,
        max_position=max(lengths) + args.new_tokens,
        patch_width=64,
        dtype=dtype,
    )
    weights = random_weights(config)
    theirs = _Torch(config, weights, "cuda" if on_gpu else "cpu")
    rows = []
    for length in lengths:
        tokens = np.random.default_rng(length).integers(0, args.vocabulary, length)
        ours = _ours(config, weights, tokens)
        sides: dict[str, Callable[[int], list[int]]] = {
            "ours": ours,
            "pytorch": partial(theirs, tokens),
        }
        runs: dict[str, Callable[[], Any]] = {
            f"{side} {count}": partial(call, count)
            for count in (1, args.new_tokens + 1)
            for side, call in sides.items()
        }
        same = ours(args.new_tokens) == theirs(tokens, args.new_tokens)
        seconds = interleaved(runs, args.repeats)
        rows.append({"length": length, "same_tokens": same, "seconds": seconds})
    return {
        "machine": machine() | {"torch": torch.__version__, "threads": torch.get_num_threads()},
        "dtype": dtype,
        "model": dataclasses.asdict(config),
        "new_tokens": args.new_tokens,
        "rows": rows,
    }


def _ours(config: ModelConfig, weights: Weights, tokens: np.ndarray) -> Callable[[int], list[int]]:
    """Returns a function that decodes `count` tokens greedily.

    All tokens but the last one are the prefix; the last one is the question.
    """
    import jax
    import numpy as np

    from elva_jax.inference import decode, prefill
    from elva_jax.inference.batching import build_rows, grid_length
    from elva_jax.inference.sampling import GREEDY
    from elva_jax.video.layout import Text

    sampling = GREEDY.params(config.vocab_size, (-1,))
    none = np.zeros((0, config.patch_size**2 * 3), np.uint8)

    def answer(count: int) -> list[int]:
        rows = build_rows([(Text(tuple(tokens[:-1])),)], [none], none.shape[1])
        prefix = prefill.prefill(config, weights, rows)
        capacity = grid_length(count)
        mask = np.zeros((1, 1, 0), bool)
        state = decode.new_state(config, prefix.length, 1, 1 + capacity, mask, prefix.stretch)
        last, one = np.asarray(tokens[-1:]).reshape(1, 1, 1), np.ones((1, 1), np.int32)
        state = decode.feed(config, weights, prefix.layers, state, last, one, sampling)
        if count == 1:
            return [int(jax.device_get(state.token)[0, 0])]
        out, _ = decode.advance(config, weights, prefix.layers, state, capacity, count, sampling)
        return np.asarray(out)[0, 0, :count].tolist()

    return answer


class _Torch:
    """transformers' model with the same weights."""

    def __init__(self, config: ModelConfig, weights: Weights, device: str):
        import torch
        from transformers import Qwen2Config, Qwen2ForCausalLM

        model: Any = Qwen2ForCausalLM(Qwen2Config(**qwen2_settings(config)))
        model.load_state_dict(_state_dict(weights))
        self._torch, self._device = torch, device
        self._model = model.to(device, getattr(torch, config.dtype)).eval()

    def __call__(self, tokens: np.ndarray, count: int) -> list[int]:
        """Decodes `count` tokens greedily."""
        torch = self._torch
        with torch.inference_mode():
            ids = torch.as_tensor(tokens, device=self._device)[None]
            out = self._model(input_ids=ids, use_cache=True, logits_to_keep=1)
            found = []
            for _ in range(count):
                token = out.logits[:, -1].argmax(-1, keepdim=True)
                found.append(token)
                if len(found) < count:
                    out = self._model(
                        input_ids=token, past_key_values=out.past_key_values, use_cache=True
                    )
            return torch.cat(found, dim=1)[0].tolist()


def qwen2_settings(config: ModelConfig) -> dict[str, Any]:
    """The arguments of transformers' `Qwen2Config` for the decoder of a model."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "max_position_embeddings": config.max_position,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_embeddings,
        "attn_implementation": "sdpa",
    }


def _state_dict(weights: Weights) -> dict[str, Any]:
    """The weights by transformers' names; the head is tied to the embedding."""
    import numpy as np
    import torch

    def tensor(leaf: Any) -> torch.Tensor:
        return torch.from_numpy(np.array(leaf, np.float32))

    state = {
        "model.embed_tokens.weight": tensor(weights.embed_tokens),
        "model.norm.weight": tensor(weights.norm["scale"]),
    }
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    for n, layer in enumerate(weights.layers):
        for name, leaves in layer.items():
            block = "mlp." if name.split("_")[0] in ("gate", "up", "down") else "self_attn."
            block = "" if "norm" in name else block
            for kind, leaf in leaves.items():
                theirs = {"kernel": "weight", "scale": "weight"}.get(kind, kind)
                value = tensor(leaf).T.contiguous() if kind == "kernel" else tensor(leaf)
                state[f"model.layers.{n}.{block}{name}.{theirs}"] = value
    return state


def show(report: dict[str, Any]) -> str:
    """Formats the report."""
    rows, count = [], report["new_tokens"]
    for row in report["rows"]:
        seconds: dict[str, Spread] = row["seconds"]
        first = {side: seconds[f"{side} 1"] for side in ("ours", "pytorch")}
        speed = {
            side: count / (seconds[f"{side} {count + 1}"]["median"] - first[side]["median"])
            for side in first
        }
        rows.append(
            [
                f"{row['length']:,}",
                milliseconds(first["ours"]),
                milliseconds(first["pytorch"]),
                f"{first['ours']['median'] / first['pytorch']['median']:.2f}",
                f"{speed['ours']:.1f}",
                f"{speed['pytorch']:.1f}",
                f"{speed['pytorch'] / speed['ours']:.2f}",
                "yes" if row["same_tokens"] else "NO",
            ]
        )
    host = report["machine"]
    title = f"{host['device']}, {report['dtype']}, JAX {host['jax']}, PyTorch {host['torch']}"
    return f"{title}\n{text_table(COLUMNS, rows, words=0)}"
