"""From a run to a Hugging Face folder that loads with transformers alone."""

from __future__ import annotations

import json
import string
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from ml_collections import ConfigDict
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

import elva_jax
from elva_jax.checkpoints.restore import SavedRun, open_run
from elva_jax.config.serialize import config_to_dict
from elva_jax.data.tokenizer import load as load_tokenizer
from elva_jax.errors import ConvertError
from elva_jax.hf import elva, safetensors_io
from elva_jax.video.hybrid import low_edge_beside

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
HF_FILES = Path(__file__).parent / "remote_code"  # what is shipped in the folder
NEW_TOKENS = 64  # longest answer where a call of `generate` does not say
CHAT_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' %}{{ SYSTEM }}{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string %}
{{- message['content'] | trim }}
{%- else %}
{%- for part in message['content'] %}
{{- part['text'] | trim if part['type'] == 'text' else '<' + part['type'] + '>' }}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"""


def export(run_path: str | Path, out: str | Path, *, dtype: str = "float32") -> None:
    """Writes a run's ELVA as a Hugging Face folder, one parameter in memory at a time; a kill leaves nothing at `out`.

    Heads that only training needs (guidance) stay behind.

    Args:
      run_path: a run's workdir, one stage in it, or one saved step.
      out: a folder that does not exist yet, or is empty.
      dtype: float32 | bfloat16 | float16, of the weights.

    Raises:
      ConvertError: an unknown dtype, a run without an ELVA, weights that `dtype` cannot hold, or an `out` with something in it.
      CheckpointError: no checkpoint there.
    """
    if dtype not in DTYPES:
        raise ConvertError(f"--dtype {dtype}: use one of {', '.join(DTYPES)}")
    run = open_run(run_path)
    if run.config.stages[run.stage].kind != "elva":
        raise ConvertError(
            f"{run.path}: stage {run.stage} trains a {run.config.stages[run.stage].kind}; give an ELVA stage"
        )
    if run.config.model.patch_embed == "encoder":
        raise ConvertError(
            f"{run.path}: has model.patch_embed = encoder; the PyTorch side knows ELVA, not the encoder-based baseline"
        )
    with tempfile.TemporaryDirectory() as folder:
        files = _files(run, Path(folder), dtype, Path(out).name)
        safetensors_io.write_store(
            Path(out), _tensors(run, dtype), files=files, metadata={"format": "pt"}
        )


def _tensors(run: SavedRun, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    """Name and value of every tensor of the folder, in the dtype wanted."""
    for path in sorted(run.shapes):
        if not path.startswith("elva/"):
            continue
        for name, value in elva.TABLE.to_theirs(path.removeprefix("elva/"), run.read(path)):
            with np.errstate(over="ignore"):  # found below, by name
                value = np.ascontiguousarray(value).astype(DTYPES[dtype], copy=False)
            if not np.isfinite(value).all():
                raise ConvertError(
                    f"{run.path}: {path} holds values that are not finite in {dtype}; export as float32 to look at them"
                )
            yield name, value


def _files(run: SavedRun, folder: Path, dtype: str, name: str) -> dict[str, bytes | Path]:
    """Everything in the folder but the weights; `folder` is a place for the tokenizer's files."""
    model, data = run.config.model, run.config.stages[run.stage].data
    tokenizer = load_tokenizer(run.tokenizer_dir)
    words = min(len(tokenizer), model.vocab_size)
    ends = sorted(
        {
            tokenizer.convert_tokens_to_ids("<|im_end|>"),
            *([tokenizer.eos_token_id] if tokenizer.eos_token_id else []),
        }
    )
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    visual_ids = add_visual_tokens(tokenizer)
    # Neither rows that no token uses nor visual tokens may be answers.
    unused = sorted(
        {*range(words, model.vocab_size), *(i for i in visual_ids if i < model.vocab_size)}
    )
    special_ids = {"pad_token_id": pad, "eos_token_id": ends[0] if len(ends) == 1 else ends}
    generation = {
        **special_ids,
        "max_new_tokens": NEW_TOKENS,
        "do_sample": False,
        **({"suppress_tokens": unused} if unused else {}),
    }
    _save_tokenizer(tokenizer, folder, data.system_prompt)
    written = {
        "config.json": elva.to_hf_config(
            model, dtype, visual_ids, system_prompt=data.system_prompt, **special_ids
        ),
        "generation_config.json": generation,
        "processor_config.json": _processor_config(model, data),
        elva.RUN_FILE: {
            "config": config_to_dict(run.config),
            "stage": run.stage,
            "step": run.step,
            "version": elva_jax.__version__,
        },
    }
    return {
        **{file.name: file for file in folder.iterdir()},
        **{file.name: file for file in HF_FILES.glob("*.py")},
        **{
            file: (json.dumps(values, indent=2) + "\n").encode() for file, values in written.items()
        },
        "README.md": _model_card(run, dtype, name).encode(),
    }


def add_visual_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int, int]:
    """Sees to it that `<FRAME>`, `<PATCH>` and `<LINE>` are tokens, behind all others; returns their ids."""
    words = tokenizer.get_vocab()
    missing = [token for token in (elva.FRAME, elva.PATCH, elva.LINE) if token not in words]
    tokenizer.add_tokens(
        [AddedToken(token, normalized=False, special=True) for token in missing],
        special_tokens=True,
    )
    return tuple(tokenizer.convert_tokens_to_ids([elva.FRAME, elva.PATCH, elva.LINE]))


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, system_prompt: str) -> None:
    system = f"<|im_start|>system\n{system_prompt}<|im_end|>\n" if system_prompt else ""
    tokenizer.chat_template = CHAT_TEMPLATE.replace(
        "SYSTEM", json.dumps(system, ensure_ascii=False)
    )
    tokenizer.save_pretrained(folder)
    # The attribute is not saved by itself; answers grow on the right, so that prompts must end together.
    settings = folder / "tokenizer_config.json"
    settings.write_text(
        json.dumps({**json.loads(settings.read_text()), "padding_side": "left"}, indent=2) + "\n"
    )


def _processor_config(model: ConfigDict, data: ConfigDict) -> dict[str, Any]:
    frames = {name: data[name] for name in elva.MEDIA}
    trained_so = data.num_low_frames > 0
    return {
        "processor_class": "ElvaProcessor",
        "auto_map": {"AutoProcessor": "processing_elva.ElvaProcessor"},
        "image_processor": {
            "image_processor_type": "ElvaImageProcessor",
            "auto_map": {"AutoImageProcessor": "image_processing_elva.ElvaImageProcessor"},
            "patch_size": model.patch_size,
            **frames,
            "num_low_frames": 0,
            "low_longest_edge": data.low_longest_edge
            if trained_so
            else low_edge_beside(data.longest_edge, model.patch_size),
            "hybrid_policy": data.hybrid_policy,
        },
    }


def _model_card(run: SavedRun, dtype: str, name: str) -> str:
    model, data = run.config.model, run.config.stages[run.stage].data
    count = sum(
        int(np.prod(leaf.shape)) for path, leaf in run.shapes.items() if path.startswith("elva/")
    )
    layers = ", ".join(map(str, model.merge_layers))
    return string.Template((HF_FILES / "README.md").read_text()).substitute(
        name=name,
        patch_size=model.patch_size,
        layers=model.num_layers,
        width=model.hidden_size,
        merging=f"before layers {layers}" if layers else "nowhere in this model",
        parameters=f"{count:,}",
        dtype=dtype,
        stage=run.stage,
        step=run.step,
        num_frames=data.num_frames,
        longest_edge=data.longest_edge,
    )
