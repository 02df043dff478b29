"""The training step of transformers' Qwen2 in PyTorch, for `elva bench train`."""

from __future__ import annotations

from typing import Any

from elva_jax.errors import ConfigError
from elva_jax.models import flops
from elva_jax.tasks.base import ModelTask
from elva_jax.tools.bench.pytorch import qwen2_settings
from elva_jax.tools.bench.train_step import random_batch, summary, time_steps
from elva_jax.training.mfu import PEAKS


def measure(task: ModelTask, repeats: int, *, compiled: bool = False) -> dict[str, Any]:
    """Times the step on rows of as many tokens as ours, all of which are text.

    Args:
      task: of the stage.
      repeats: timed steps.
      compiled: by torch.compile.

    Raises:
      ConfigError: PyTorch is missing.
    """
    try:
        import torch
    except ImportError:
        raise ConfigError(
            "elva bench train --trainer pytorch needs PyTorch and transformers; install the extra "
            "`test`, or PyTorch for your GPU"
        ) from None
    from transformers import Qwen2Config, Qwen2ForCausalLM

    layout, size = random_batch(task)["layout"], task.stage.batch_size
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    with torch.device(device):
        model: Any = Qwen2ForCausalLM(Qwen2Config(**qwen2_settings(task.config.model)))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device == "cuda")
    forward = torch.compile(model.model) if compiled else model.model
    ids_1xS = torch.as_tensor(layout.token_id[:1], device=device).long()
    learned_S = torch.as_tensor(layout.loss_weight[0] > 0, device=device)
    target_N = torch.as_tensor(layout.target[0], device=device).long()[learned_S]

    def step() -> None:
        for _ in range(size):
            with torch.autocast(device, torch.bfloat16):
                hidden_1xSxD = forward(input_ids=ids_1xS, use_cache=False).last_hidden_state
                logits_NxV = model.lm_head(hidden_1xSxD[0, learned_S])
            loss = torch.nn.functional.cross_entropy(logits_NxV.float(), target_N)
            (loss / size).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()

    seconds = time_steps(step, repeats)
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    peak = next((value for key, value in PEAKS.items() if key in name), None)
    length, answers = ids_1xS.numel(), target_N.numel()
    work = 3 * size * _forward_flops(task, length, answers)
    memory = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
    return summary(task, float(size * length), work, seconds, peak) | {
        "machine": {"device": name, "torch": torch.__version__},
        "peak_gib": memory,
    }


def _forward_flops(task: ModelTask, length: int, answers: int) -> float:
    """Matrix products of one causal row of `length` tokens, with logits of `answers` of them."""
    model = task.config.model
    linear = 2.0 * length * flops.layer_weights(model)
    attention = flops.layer_attention(model, length * (length + 1) / 2)
    return model.num_layers * (linear + attention) + flops.head(model, answers)
