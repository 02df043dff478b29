"""Tests with a pretrained Llama and Qwen2's vocabulary from the folder ELVA_TEST_ASSETS."""

import base64
import dataclasses
import functools
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from elva_jax.checkpoints.restore import load_run
from elva_jax.data.conversation import check_tokenizer
from elva_jax.data.tokenizer import CHAT_TEMPLATE
from elva_jax.data.tokenizer import load as load_tokenizer
from elva_jax.hf.import_checkpoint import import_weights
from elva_jax.models.qwen2 import Qwen2

ASSETS = Path(os.environ.get("ELVA_TEST_ASSETS", "/nowhere"))
pytestmark = pytest.mark.skipif(not ASSETS.is_dir(), reason="ELVA_TEST_ASSETS names no folder")
STORY = 200  # tokens


def read_llama2c(file: Path) -> LlamaForCausalLM:
    """Reads a model in llama2.c's format: seven int32, then all float32 matrices of each kind."""
    dim, hidden, layers, heads, kv_heads, vocab, length = np.fromfile(file, np.int32, 7).tolist()
    values, at = np.fromfile(file, np.float32, offset=28), 0

    def take(*shape):
        nonlocal at
        at += int(np.prod(shape))
        return torch.from_numpy(values[at - int(np.prod(shape)) : at].reshape(shape))

    def halves(matrix, count):
        """Reorders rows from RoPE on adjacent pairs to RoPE on the two halves of a head."""
        return matrix.reshape(count, -1, 2, dim).transpose(1, 2).reshape(-1, dim)

    config = LlamaConfig(
        vocab_size=abs(vocab),
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=length,
        rms_norm_eps=1e-5,
        tie_word_embeddings=vocab > 0,
    )
    kv = dim // heads * kv_heads
    state = {"model.embed_tokens.weight": take(abs(vocab), dim)}
    for name, shape in (
        ("input_layernorm", (dim,)),
        ("self_attn.q_proj", (dim, dim)),
        ("self_attn.k_proj", (kv, dim)),
        ("self_attn.v_proj", (kv, dim)),
        ("self_attn.o_proj", (dim, dim)),
        ("post_attention_layernorm", (dim,)),
        ("mlp.gate_proj", (hidden, dim)),
        ("mlp.down_proj", (dim, hidden)),
        ("mlp.up_proj", (hidden, dim)),
    ):
        for i, matrix in enumerate(take(layers, *shape)):
            turned = {"self_attn.q_proj": heads, "self_attn.k_proj": kv_heads}.get(name)
            state[f"model.layers.{i}.{name}.weight"] = halves(matrix, turned) if turned else matrix
    state["model.norm.weight"] = take(dim)
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(state, strict=False)
    return model


def vocabulary(file: Path) -> list[str]:
    """The pieces of a SentencePiece vocabulary file, with its marks for spaces."""
    return [line.split("\t")[0].replace("\u2581", " ") for line in file.read_text().splitlines()]


def as_qwen2(llama: LlamaForCausalLM) -> Qwen2ForCausalLM:
    """The same model as Qwen2, with zero biases."""
    keys = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    )
    more = ("max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")
    model = Qwen2ForCausalLM(
        Qwen2Config(**{key: getattr(llama.config, key) for key in (*keys, *more)})
    ).eval()
    model.load_state_dict({**model.state_dict(), **llama.state_dict()})
    with torch.no_grad():
        for layer in model.model.layers:
            for projection in (
                layer.self_attn.q_proj,
                layer.self_attn.k_proj,
                layer.self_attn.v_proj,
            ):
                projection.bias.zero_()
    return model


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_pretrained_llama_continues_a_story_as_in_transformers(tmp_path, kind):
    folder = ASSETS / "models" / "babyllama_tok105"
    model = read_llama2c(folder / "model5000.bin")
    model = as_qwen2(model) if kind == "qwen2" else model
    model.save_pretrained(tmp_path / "hf")
    with torch.no_grad():
        wanted = model.generate(
            torch.tensor([[1]]), max_new_tokens=STORY, do_sample=False, pad_token_id=0
        )[0].tolist()
        logits = model(torch.tensor([wanted])).logits[0].numpy()
    import_weights(tmp_path / "hf", tmp_path / "ours")
    run = load_run(tmp_path / "ours")
    assert run.config.model.attention_bias == (kind == "qwen2")
    model = run.config.model
    decoder = Qwen2(dataclasses.replace(model, dtype="float32"))
    length = STORY + 1

    @jax.jit
    def forward(params, ids):
        return decoder.apply(
            {"params": params},
            ids,
            np.arange(length, dtype=np.int32)[None],
            np.ones((1, length), np.int32),
        )[0]

    story = [1]
    while len(story) < len(wanted):
        ids = np.zeros((1, length), np.int32)
        ids[0, : len(story)] = story
        out = forward(run.params["elva"]["decoder"], ids)
        story.append(int(out[len(story) - 1].argmax()))
    assert story == wanted
    np.testing.assert_allclose(out[: len(story) - 1], logits[:-1], atol=1e-4, rtol=0)
    text = "".join(vocabulary(folder / "tok105.vocab")[token] for token in story[1:])
    assert "once upon a time" in text.lower()


@functools.cache
def merges(token: bytes, ranks: "Ranks") -> tuple[bytes, ...]:
    """The last two pieces of a token when its bytes merge in pairs by lowest rank."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        best = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], 1 << 30))
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return tuple(parts)


class Ranks(dict):
    """Ranks of byte sequences; hashable, so that it can be an argument of a cached function."""

    __hash__ = object.__hash__


PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]


@pytest.fixture(scope="module")
def qwen_folder(tmp_path_factory):
    """Qwen2's vocabulary as a transformers folder, with tiny weights for its 151,936 rows."""
    lines = (ASSETS / "tokenizer" / "qwen.tiktoken").read_text().splitlines()
    ranks = Ranks(
        (base64.b64decode(token), int(rank)) for token, rank in (line.split() for line in lines)
    )
    rest = [byte for byte in range(256) if byte not in BYTES]
    letters = {
        **{byte: chr(byte) for byte in BYTES},
        **{byte: chr(256 + i) for i, byte in enumerate(rest)},
    }

    def readable(token):
        return "".join(letters[byte] for byte in token)

    vocab = {readable(token): rank for token, rank in ranks.items()}
    pairs = [
        tuple(map(readable, merges(token, ranks)))
        for token in sorted(ranks, key=ranks.get)
        if len(token) > 1
    ]
    tokenizer = Tokenizer(models.BPE(vocab, pairs))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = json.loads((ASSETS / "tokenizer" / "qwen2.5_special_tokens.json").read_text())
    # The special tokens that Qwen2 has: <|endoftext|>, <|im_start|>, <|im_end|>.
    first = sorted(special, key=special.get)[:3]
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in first]
    )
    folder = tmp_path_factory.mktemp("qwen")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    config = Qwen2Config(
        vocab_size=151_936, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1,
        tie_word_embeddings=True,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


def test_qwen2_tokenizer_is_imported(qwen_folder, tmp_path):
    import_weights(qwen_folder, tmp_path / "ours")
    run = load_run(tmp_path / "ours")
    tokenizer, before = load_tokenizer(run.tokenizer_dir), load_tokenizer(qwen_folder)
    check_tokenizer(tokenizer)
    assert tokenizer.encode("Hello world") == [9707, 1879]
    assert [
        tokenizer.convert_tokens_to_ids(token)
        for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    ] == [151643, 151644, 151645]
    visual = tokenizer.convert_tokens_to_ids(["<FRAME>", "<PATCH>", "<LINE>"])
    assert len(before) == 151_646
    # Rows of the embedding that Qwen2 does not use.
    assert sorted(visual) == [151_646, 151_647, 151_648]
    assert run.config.model.vocab_size == 151_936
    for text in ("Ein Bär läuft 3-mal.", "视频里有什么？", "<FRAME> is text\n\n  too"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
