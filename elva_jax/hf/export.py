"""Writing an ELVA as a Hugging Face folder that loads with transformers alone."""

from __future__ import annotations

import copy
import json
import math
import string
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from elva_jax.checkpoints.restore import SavedRun, open_run
from elva_jax.config.schema import Config, DataConfig, ModelConfig
from elva_jax.config.serialize import config_to_dict
from elva_jax.config.stages import stages_of_kind
from elva_jax.data.prompt_format import load_tokenizer
from elva_jax.data.tokenizer import TURN_END, VISUAL_TOKENS
from elva_jax.errors import ConvertError
from elva_jax.hf import decoder, elva
from elva_jax.hf.param_mapping import Table
from elva_jax.hf.tensor_store import refuse_adapter
from elva_jax.hf.write_store import write_store
from elva_jax.models.build import parameter_shapes
from elva_jax.utils.read import read_json
from elva_jax.utils.trees import flatten_paths
from elva_jax.version import __version__
from elva_jax.video.hybrid import default_low_edge

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
REMOTE_CODE = Path(__file__).parent / "remote_code"  # PyTorch files and model card of the folder
NEW_TOKENS = 64  # longest answer unless a call of `generate` says otherwise
CHAT_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' %}{{ SYSTEM }}{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string %}
{{- message['content'] | trim }}
{%- else %}
{%- for part in message['content'] %}
{%- if loop.previtem is defined and part['type'] == 'text' == loop.previtem['type'] %}
{{- '\\n' }}
{%- endif %}
{{- part['text'] | trim if part['type'] == 'text' else '<' + part['type'] + '>' }}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"""


class _SavedParameter:
    """A parameter of a run, read whenever NumPy makes an array of it."""

    def __init__(self, run: SavedRun, name: str):
        self.run, self.name = run, name

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        return self.run.read(self.name)


def export(run_path: str | Path, out: str | Path, *, dtype: str = "float32") -> str:
    """`save_pretrained` of a run, with one parameter in memory at a time.

    Heads that only training needs (guidance) are left out. Of a MERV the decoder alone is written.

    Args:
      run_path: a run's workdir, one stage in it, or one saved step.
      out: a folder that does not exist yet, or is empty.
      dtype: dtype of the weights: float32, bfloat16 or float16.

    Returns:
      The class of transformers that reads the folder.

    Raises:
      ConvertError: as in `save_pretrained`.
      CheckpointError: no checkpoint there.
    """
    check_dtype(dtype)
    refuse_adapter(Path(run_path))
    run = open_run(run_path)
    names = [name for name in run.shapes if name.startswith("elva/")]
    return save_pretrained(
        out,
        {name.removeprefix("elva/"): _SavedParameter(run, name) for name in names},
        run.config,
        load_tokenizer(run.config, run.tokenizer_dir),
        stage=run.stage,
        step=run.step,
        dtype=dtype,
        where=str(run.path),
    )


def save_pretrained(
    out: str | Path,
    params: Mapping[str, Any],
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    *,
    stage: str,
    step: int = 0,
    dtype: str = "float32",
    where: str = "the model",
) -> str:
    """Writes an ELVA as a Hugging Face folder. If the process is killed, nothing is left at `out`.

    Of a MERV the decoder alone is written, as a language model that transformers knows.

    Args:
      out: a folder that does not exist yet, or is empty.
      params: tree of the parameters of `models.elva.Elva`, with stacked decoder layers.
      config: the run's configuration.
      tokenizer: the run's tokenizer; it is not changed.
      stage: the stage whose media settings and system prompt the folder gets.
      step: the training step, for the record.
      dtype: dtype of the weights: float32, bfloat16 or float16.
      where: the model's name in messages.

    Returns:
      The class of transformers that reads the folder.

    Raises:
      ConvertError: an unknown dtype, a stage without an ELVA, weights that `dtype` cannot hold, or
        an `out` that is not empty.
    """
    check_dtype(dtype)
    if not stages_of_kind(config, "elva", among=(stage,)):
        kind = config.stages[stage].kind
        raise ConvertError(f"{where}: stage {stage} trains a {kind}; give an ELVA stage")
    if config.model.frame_attention != "causal":
        raise ConvertError(
            f"{where}: has model.frame_attention = {config.model.frame_attention}; attention is"
            " causal on the PyTorch side"
        )
    if config.model.encoders:
        return _save_decoder(out, params, config, tokenizer, dtype, where)
    if config.model.patch_embed == "encoder":
        raise ConvertError(
            f"{where}: has model.patch_embed = encoder; the PyTorch side has no encoder-based"
            " baseline"
        )
    if (form := config.stages[stage].data.prompt_format) != "chatml":
        raise ConvertError(
            f"{where}: has data.prompt_format = {form}; the PyTorch side asks in chatml only"
        )
    record = {"stage": stage, "step": step, "version": __version__}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        configs = _configs(config, stage, copy.deepcopy(tokenizer), folder, dtype)
        configs[elva.RUN_FILE] = {"config": config_to_dict(config), **record}
        card = _model_card(config, stage, name=Path(out).name, step=step, dtype=dtype)
        files: dict[str, bytes | Path] = {
            **{file.name: file for file in (*folder.iterdir(), *REMOTE_CODE.glob("*.py"))},
            **{name: (json.dumps(v, indent=2) + "\n").encode() for name, v in configs.items()},
            "README.md": card.encode(),
        }
        write_store(out, _tensors(params, elva.TABLE, dtype, where), files=files)
    return "ElvaForCausalLM"


def _save_decoder(
    out: str | Path,
    params: Mapping[str, Any],
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    dtype: str,
    where: str,
) -> str:
    """Writes the decoder alone, with the tokenizer as it is."""
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer.save_pretrained(temporary)
        special_ids = _special_ids(tokenizer)
        if tokenizer.bos_token_id is not None:  # Llama's default would be 1
            special_ids["bos_token_id"] = tokenizer.bos_token_id
        settings = decoder.to_hf_config(config.model, dtype, special_ids)
        generation = {**special_ids, "max_new_tokens": NEW_TOKENS, "do_sample": False}
        configs = {"config.json": settings, "generation_config.json": generation}
        files: dict[str, bytes | Path] = {
            **{file.name: file for file in Path(temporary).iterdir()},
            **{name: (json.dumps(v, indent=2) + "\n").encode() for name, v in configs.items()},
        }
        leaves = flatten_paths(params).items()
        own = {path: leaf for path, leaf in leaves if path.startswith("decoder/")}
        write_store(out, _tensors(own, decoder.TABLE, dtype, where), files=files)
    return settings["architectures"][0]


def check_dtype(dtype: str) -> None:
    """Raises ConvertError for a dtype that weights cannot be written in."""
    if dtype not in DTYPES:
        raise ConvertError(f"--dtype {dtype}: use one of {', '.join(DTYPES)}")


def _tensors(
    params: Mapping[str, Any], table: Table, dtype: str, where: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Name and value of every tensor of the folder."""
    for path, leaf in sorted(flatten_paths(params).items()):
        for name, value in table.to_theirs(path, np.asarray(leaf)):
            yield name, cast_finite(value, DTYPES[dtype], f"{where}: {path}")


def cast_finite(value: np.ndarray, dtype: np.dtype, where: str) -> np.ndarray:
    """A contiguous array in another dtype.

    Raises:
      ConvertError: it contains values that are not finite in that dtype.
    """
    with np.errstate(over="ignore"):  # reported below, with the parameter's name
        cast = np.ascontiguousarray(value).astype(dtype, copy=False)
    if not np.isfinite(cast).all():
        raise ConvertError(
            f"{where} holds values that are not finite in {dtype}; export as float32 to look at"
            " them"
        )
    return cast


def _configs(
    config: Config, stage: str, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: str
) -> dict[str, Any]:
    """The JSON files of the folder by name; the tokenizer's own files are written to `folder`."""
    model, data = config.model, config.stages[stage].data
    words = min(len(tokenizer), model.vocab_size)
    special_ids = _special_ids(tokenizer)
    visual_ids = add_visual_tokens(tokenizer)
    _save_tokenizer(tokenizer, folder, data.system_prompt)
    # Visual tokens, and rows of the embedding that no token uses, may not be answers.
    unused = {*range(words, model.vocab_size), *(i for i in visual_ids if i < model.vocab_size)}
    suppressed = {"suppress_tokens": sorted(unused)} if unused else {}
    generation = {**special_ids, "max_new_tokens": NEW_TOKENS, "do_sample": False, **suppressed}
    return {
        "config.json": elva.to_hf_config(
            model, dtype, visual_ids, system_prompt=data.system_prompt, **special_ids
        ),
        "generation_config.json": generation,
        "processor_config.json": _processor_config(model, data),
    }


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The padding token, and the tokens that end an answer."""
    chat = tokenizer.get_vocab().get(TURN_END)
    ends = sorted({end for end in (chat, tokenizer.eos_token_id) if end is not None})
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    return {"pad_token_id": pad, "eos_token_id": ends[0] if len(ends) == 1 else ends}


def add_visual_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int, int]:
    """Adds `<FRAME>`, `<PATCH>` and `<LINE>` after all other tokens, if missing; their ids."""
    words = tokenizer.get_vocab()
    missing = [token for token in VISUAL_TOKENS if token not in words]
    tokenizer.add_tokens(
        [AddedToken(token, normalized=False, special=True) for token in missing],
        special_tokens=True,
    )
    words = tokenizer.get_vocab()
    frame, patch, line = (words[token] for token in VISUAL_TOKENS)
    return frame, patch, line


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, system_prompt: str) -> None:
    system = f"<|im_start|>system\n{system_prompt}<|im_end|>\n" if system_prompt else ""
    tokenizer.chat_template = CHAT_TEMPLATE.replace(
        "SYSTEM", json.dumps(system, ensure_ascii=False)
    )
    tokenizer.save_pretrained(folder)
    # Answers grow to the right, so prompts are padded on the left; save_pretrained leaves it out.
    file = folder / "tokenizer_config.json"
    settings = {**read_json(file, ConvertError), "padding_side": "left"}
    file.write_text(json.dumps(settings, indent=2) + "\n")


def _processor_config(model: ModelConfig, data: DataConfig) -> dict[str, Any]:
    low_edge = default_low_edge(data.longest_edge, model.patch_size)
    return {
        "processor_class": "ElvaProcessor",
        "auto_map": {"AutoProcessor": "processing_elva.ElvaProcessor"},
        "image_processor": {
            "image_processor_type": "ElvaImageProcessor",
            "auto_map": {"AutoImageProcessor": "image_processing_elva.ElvaImageProcessor"},
            "patch_size": model.patch_size,
            **{name: getattr(data, name) for name in elva.MEDIA},
            "num_low_frames": 0,
            # Hybrid resolution is off until a call asks for it, then as it was trained, if it was.
            "low_longest_edge": data.low_longest_edge if data.num_low_frames > 0 else low_edge,
            "hybrid_policy": data.hybrid_policy,
        },
        # It has the settings of the image processor.
        "video_processor": {
            "video_processor_type": "ElvaVideoProcessor",
            "auto_map": {"AutoVideoProcessor": "video_processing_elva.ElvaVideoProcessor"},
        },
    }


def _model_card(config: Config, stage: str, **values: Any) -> str:
    model, data = config.model, config.stages[stage].data
    shapes = parameter_shapes(config, "elva").values()
    layers = ", ".join(map(str, model.merge_layers))
    return string.Template((REMOTE_CODE / "README.md").read_text()).substitute(
        **values,
        stage=stage,
        patch_size=model.patch_size,
        layers=model.num_layers,
        width=model.hidden_size,
        merging=f"before layers {layers}" if layers else "nowhere in this model",
        parameters=f"{sum(map(math.prod, shapes)):,}",
        num_frames=data.num_frames,
        longest_edge=data.longest_edge,
    )
