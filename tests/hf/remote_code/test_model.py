"""Tests of the exported PyTorch model against ELVA in JAX, and of its transformers features."""

import copy

import jax
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from elva_jax.evaluation.compare import check
from elva_jax.hf.export import export
from elva_jax.video.layout import Text, TokenLayout, build_layout

QUESTION = "What colour is the circle?"


def one_rule(policy, threshold, ratio, layer=1):
    return dict(
        merge_layers=(layer,),
        merge_policies=(policy,),
        merge_thresholds=(threshold,),
        merge_ratios=(ratio,),
    )


MODELS = {
    "ratio, naive, tied, no biases, llama3": dict(
        **one_rule("ratio", 0.0, 0.5), patch_embed="naive", tie_embeddings=True,
        attention_bias=False, num_kv_heads=4, num_layers=2,
        rope_scaling="llama3", rope_factor=4.0, rope_original_max_position=100,
        rope_low_freq_factor=0.1, rope_high_freq_factor=4.0,
    ),
    "lines merge into the first, at once, two patch heads, yarn": dict(
        **one_rule("both", 0.6, 0.4, 0), merge_lines=True, merge_survivor="first", patch_heads=2,
        pixel_mean=0.2, pixel_std=0.3, num_kv_heads=1, num_layers=2,
        rope_scaling="yarn", rope_factor=4.0, rope_original_max_position=100,
    ),
    "threshold, dynamic, odd head width": dict(
        **one_rule("threshold", 0.4, 1.0), head_dim=6, num_layers=2, rope_scaling="dynamic",
        rope_factor=2.0, rope_original_max_position=100
    ),
}  # fmt: skip


def inputs_of(processor, videos, question=QUESTION, **options):
    content = [
        [{"type": "video", "video": frames}, {"type": "text", "text": question}]
        for frames in videos
    ]
    return processor.apply_chat_template(
        [[{"role": "user", "content": parts}] for parts in content],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs=options,
    )


def answers_of(processor, model, inputs, **options):
    with torch.no_grad():
        out = model.generate(**inputs, **options)
    return out[:, inputs["input_ids"].shape[1] :]


def assert_same(report, shrinks):
    assert report.same, report.lines
    assert "greedy tokens: the first 64 of 64 agree" in report.lines
    total, left = report.lines[0].split()[-1], report.lines[1].split()[2]
    assert (int(left) < int(total)) == shrinks


@pytest.mark.parametrize("name", MODELS)
def test_logits_survivors_and_64_greedy_tokens_equal_jax(name, write_run, tmp_path, videos):
    """A video whose second half is static, in float32."""
    run = write_run(tmp_path / "run", **MODELS[name])
    export(run, tmp_path / "hf")
    assert_same(check(run, tmp_path / "hf", video=videos[2], prompt=QUESTION), shrinks=True)


@pytest.mark.parametrize("beyond", [-20, 20], ids=["while it answers", "from the start"])
def test_longer_than_the_longest_sequence_as_in_jax(beyond, write_run, processor, tmp_path, videos):
    """Where the answer crosses the limit, all tokens are run again; each row by its own length."""
    together = inputs_of(processor, [videos[2], videos[0]])
    lengths = together["attention_mask"].sum(1).tolist()
    run = write_run(tmp_path / "run", max_position=lengths[0] - beyond)
    export(run, tmp_path / "hf")
    assert_same(check(run, tmp_path / "hf", video=videos[2], prompt=QUESTION), shrinks=True)

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", trust_remote_code=True)
    options = {"max_new_tokens": 30, "eos_token_id": -1}
    both = answers_of(processor, model, together, **options)
    for row, frames in enumerate((videos[2], videos[0])):
        alone = inputs_of(processor, [frames])
        assert torch.equal(both[row], answers_of(processor, model, alone, **options)[0])
    again = answers_of(processor, model, together, **options, use_cache=False)
    assert torch.equal(both, again)


def test_more_tokens_than_rope_is_scaled_for_are_refused(model):
    most = 8 * model.config.max_position_embeddings
    with pytest.raises(ValueError, match=rf"{most + 1} tokens: .* 400, or {most} with RoPE scaled"):
        model(input_ids=torch.ones((1, most + 1), dtype=torch.long))


@pytest.mark.parametrize("merging", [True, False])
def test_outputs_equal_jax_with_and_without_merging(run_dir, exported, videos, merging):
    assert_same(
        check(run_dir, exported, video=videos[2], prompt=QUESTION, merging=merging), shrinks=merging
    )


@pytest.mark.parametrize(
    "scaling",
    [
        ("default",),
        ("linear", 2.0, 100),
        ("dynamic", 3.0, 100),
        ("yarn", 4.0, 64),
        ("yarn", 1.0, 4000),
        ("llama3", 8.0, 400),
    ],
    ids=lambda scaling: scaling[0],
)
def test_rope_frequencies(model, scaling):
    from elva_jax.ops.rope import RopeScaling, frequencies

    config = copy.deepcopy(model.config)
    config.head_dim = 10
    config.rope_parameters = {"rope_type": scaling[0], "rope_theta": 500.0}
    if scaling[1:]:
        config.rope_parameters |= {
            "factor": scaling[1],
            "original_max_position_embeddings": scaling[2],
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        }
    wanted, factor = frequencies(10, 500.0, RopeScaling(*scaling), config.max_position_embeddings)
    rotary = type(model.model.rotary_emb)(config)
    np.testing.assert_allclose(rotary.frequencies, wanted, rtol=1e-6)
    assert rotary.factor == factor


def test_static_video_merges_as_in_jax(write_run, tmp_path, videos):
    """Copies have similarity 1 up to rounding, which must not decide which of them merge."""
    run = write_run(tmp_path / "run", **one_rule("ratio", 0.0, 0.5, 0), num_layers=2)
    export(run, tmp_path / "hf")
    report = check(run, tmp_path / "hf", video=videos[1], prompt=QUESTION, new_tokens=2)
    assert report.same, report.lines


def test_a_batch_of_different_videos(processor, model, generator, videos):
    """Each row gives the same answer alone and in JAX, with padding on either side."""
    together = inputs_of(processor, videos)
    with torch.no_grad():
        out = model(**together)
    prefilled = generator.prefill(
        [(generator.read_media(frames),) for frames in videos], prompts=[QUESTION] * len(videos)
    )
    wanted = prefilled.generate([[QUESTION]] * len(videos), 24)
    answers = answers_of(processor, model, together, max_new_tokens=24)
    survivors = []
    for row, frames in enumerate(videos):
        alone = inputs_of(processor, [frames])
        with torch.no_grad():
            one = model(**alone)
        padding = int((together["attention_mask"][row] == 0).sum())
        index = out.token_index[row][out.token_index[row] >= 0]
        assert torch.equal(index - padding, one.token_index[0])
        torch.testing.assert_close(out.logits[row, -len(index) :], one.logits[0], atol=1e-4, rtol=0)
        ends = set(np.atleast_1d(model.generation_config.eos_token_id))
        tokens = [
            token
            for token in answers[row].tolist()
            if token not in ends and token != processor.tokenizer.pad_token_id
        ]
        assert tokens[: len(wanted[row][0].tokens)] == list(wanted[row][0].tokens)
        survivors.append(len(index))
        right = inputs_of(processor, [frames, videos[0]], padding_side="right")
        with torch.no_grad():
            torch.testing.assert_close(
                model(**right).logits[0, -len(index) :], one.logits[0], atol=1e-4, rtol=0
            )
    assert len(set(survivors)) == len(videos)


def test_hybrid_resolution_equals_jax(processor, model, generator, params):
    """Frames with two grids: tubes link high frames with high ones and low frames with low ones."""
    from elva_jax.models.elva import Elva
    from elva_jax.video.hybrid import Hybrid

    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    frames = [np.roll(picture, t, axis=1) for t in range(6)]
    seen = generator.read_media(
        frames, frames=Hybrid(high_frames=2, low_frames=4, high_edge=32, low_edge=16)
    )
    layout = TokenLayout(
        *(field[None] for field in build_layout(generator.prompt_parts(QUESTION, [seen])))
    )
    elva = Elva(generator.model_config)
    wanted = jax.jit(lambda *args: elva.apply({"params": params}, *args, merging=True))(
        seen.patches[None], layout
    )
    count = int((np.asarray(wanted.layout.kind) > 0).sum())
    with torch.no_grad():
        out = model.model(
            **inputs_of(processor, [frames], num_frames=2, num_low_frames=4, low_longest_edge=16)
        )
    np.testing.assert_array_equal(out.token_index[0], wanted.layout.position[0, :count])
    np.testing.assert_allclose(out.last_hidden_state[0], wanted.hidden[0, :count], atol=1e-4)
    np.testing.assert_array_equal(out.token_size[0], wanted.size[0, :count])
    assert count < layout.length


def test_cache_does_not_change_logits(processor, model, videos):
    inputs = inputs_of(processor, videos)
    model_kwargs = dict(max_new_tokens=12, min_new_tokens=12)
    with_cache = answers_of(processor, model, inputs, **model_kwargs)
    assert torch.equal(
        with_cache, answers_of(processor, model, inputs, use_cache=False, **model_kwargs)
    )
    with torch.no_grad():
        prefill = model(**inputs)
        # Two tokens after the cache, then one more, equal all tokens in one pass.
        ids = torch.cat([inputs["input_ids"], with_cache[:, :3]], dim=1)
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 3), value=1)
        cache = prefill.past_key_values
        assert cache.get_seq_length() == inputs["input_ids"].shape[1]
        two = model(input_ids=ids[:, -3:-1], attention_mask=mask[:, :-1], past_key_values=cache)
        one = model(input_ids=ids[:, -1:], attention_mask=mask, past_key_values=two.past_key_values)
        tubes = torch.nn.functional.pad(inputs["tube_ids"], (0, 3), value=-1)
        whole = model(
            input_ids=ids, attention_mask=mask, pixel_values=inputs["pixel_values"], tube_ids=tubes
        )
        # Rolling back, as generation does: crop the cache, and run the last token again.
        cache.crop(-1)
        again = model(input_ids=ids[:, -1:], attention_mask=mask, past_key_values=cache)
    lengths = {layer.keys.shape[2] for layer in cache.layers}
    assert len(lengths) == 3  # one per block of decoder layers
    assert max(lengths) == ids.shape[1]
    torch.testing.assert_close(
        torch.cat([two.logits, one.logits], dim=1), whole.logits[:, -3:], atol=1e-4, rtol=0
    )
    torch.testing.assert_close(again.logits, one.logits, atol=1e-5, rtol=0)


def test_sampling_and_beam_search(processor, model, videos):
    inputs = inputs_of(processor, videos[:2])
    torch.manual_seed(0)
    sampled = answers_of(
        processor,
        model,
        inputs,
        do_sample=True,
        num_return_sequences=3,
        max_new_tokens=8,
        min_new_tokens=8,
    )
    assert sampled.shape == (6, 8)
    assert len({tuple(row.tolist()) for row in sampled}) > 2
    unused = set(range(500, 520))
    assert not unused & set(sampled.flatten().tolist())
    beams = answers_of(processor, model, inputs, num_beams=3, max_new_tokens=8, min_new_tokens=8)
    alone = answers_of(
        processor,
        model,
        inputs_of(processor, videos[1:2]),
        num_beams=3,
        max_new_tokens=8,
        min_new_tokens=8,
    )
    assert torch.equal(beams[1:], alone)


def test_text_alone(processor, model, generator):
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": QUESTION}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert set(inputs) == {"input_ids", "attention_mask"}
    answer = answers_of(processor, model, inputs, max_new_tokens=16)
    assert processor.decode(answer[0], skip_special_tokens=True).strip() == generator.answer(
        None, QUESTION, max_new_tokens=16
    )
    from_embeddings = model(inputs_embeds=model.get_input_embeddings()(inputs["input_ids"])).logits
    torch.testing.assert_close(from_embeddings, model(**inputs).logits)


def test_loss_and_gradients_through_merging(processor, exported, generator, params, videos):
    """The loss equals that of training in JAX, and every parameter has a gradient.

    Both hold for padding on either side, with and without gradient checkpointing.
    """
    from transformers import AutoModelForCausalLM

    from elva_jax.models.elva import Elva

    messages = [
        {
            "role": "user",
            "content": [{"type": "video", "video": videos[2]}, {"type": "text", "text": QUESTION}],
        },
        {"role": "assistant", "content": "red and blue"},
    ]
    seen = generator.read_media(videos[2])
    answer = tuple(generator.tokenizer.encode("red and blue<|im_end|>", add_special_tokens=False))
    parts = [*generator.prompt_parts(QUESTION, [seen]), Text(answer, weight=1.0)]
    layout = TokenLayout(*(field[None] for field in build_layout(parts)))
    elva = Elva(generator.model_config)

    @jax.jit
    def forward(params, patches):
        out = elva.apply({"params": params}, patches, layout, merging=True)
        return out, jax.nn.log_softmax(elva.apply({"params": params}, out.hidden, method="head"))

    out, log_p = forward(params, seen.patches[None])
    chosen = np.take_along_axis(
        np.asarray(log_p), np.asarray(out.layout.target)[..., None], axis=-1
    )[..., 0]
    wanted = -(chosen * out.layout.loss_weight).sum() / len(answer)

    model = AutoModelForCausalLM.from_pretrained(
        exported, trust_remote_code=True, attn_implementation="eager"
    ).train()
    grads = []
    for checkpointing, side in ((False, "left"), (True, "right")):
        if checkpointing:
            model.gradient_checkpointing_enable()
        inputs = processor.apply_chat_template(
            [messages, messages[:1]],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding_side": side},
        )
        labels = torch.full_like(inputs["input_ids"], -100)
        used = inputs["attention_mask"][0].bool().nonzero()[:, 0]
        start = layout.length - len(answer)
        labels[0, used[start : start + len(answer)]] = torch.tensor(answer)
        model.zero_grad()
        loss = model(**inputs, labels=labels).loss
        assert abs(loss.item() - wanted) < 1e-4
        loss.backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, grad in grads[0].items():
        assert torch.isfinite(grad).all(), name
        # The same bias on all keys shifts all scores equally, so it has no gradient.
        assert grad.abs().sum() > 0 or name.endswith("k_proj.bias"), name
        torch.testing.assert_close(grads[1][name], grad, atol=1e-5, rtol=1e-3)


def test_other_dtypes_attentions_and_saving(exported, processor, model, videos, tmp_path):
    from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor

    inputs = inputs_of(processor, videos[:2])
    with torch.no_grad():
        wanted = model(**inputs, merging=False)
        eager = AutoModelForCausalLM.from_pretrained(
            exported, trust_remote_code=True, attn_implementation="eager"
        )
        out = eager(
            **inputs,
            merging=False,
            output_hidden_states=True,
            output_attentions=True,
            logits_to_keep=1,
        )
        torch.testing.assert_close(out.logits, wanted.logits[:, -1:], atol=1e-4, rtol=0)
        assert len(out.hidden_states) == 4
        assert out.attentions[0].shape == (2, 4, *[inputs["input_ids"].shape[1]] * 2)
        half = AutoModelForCausalLM.from_pretrained(
            exported, trust_remote_code=True, dtype=torch.bfloat16
        )
        rough = half(**inputs, merging=False).logits.float()
    assert half.dtype == torch.bfloat16
    used = inputs["attention_mask"].bool()
    assert (rough - wanted.logits)[used].abs().mean() < 0.05 * wanted.logits[used].abs().mean()

    model.save_pretrained(tmp_path / "again")
    processor.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True)
    reread = inputs_of(
        AutoProcessor.from_pretrained(tmp_path / "again", trust_remote_code=True), videos[:2]
    )
    assert all(torch.equal(reread[name], inputs[name]) for name in inputs)
    with torch.no_grad():
        assert torch.equal(again(**reread, merging=False).logits[used], wanted.logits[used])
    bare = AutoModel.from_pretrained(exported, trust_remote_code=True)
    assert type(bare).__name__ == "ElvaModel"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda i: {**i, "pixel_values": None}, "no pixel_values came with them"),
        (lambda i: {**i, "tube_ids": None}, "merging needs tube_ids"),
        (lambda i: {**i, "pixel_values": i["pixel_values"][:, :-1]}, "pixel_values have shape"),
        (lambda i: {**i, "attention_mask": i["attention_mask"][:, None]}, "attention_mask must be"),
        (
            lambda i: {**i, "inputs_embeds": torch.zeros(1, 1, 32)},
            "either input_ids or inputs_embeds",
        ),
    ],
)
def test_invalid_inputs_are_refused_with_a_reason(processor, model, videos, change, words):
    with pytest.raises(ValueError, match=words):
        model(**change(dict(inputs_of(processor, videos[:2]))))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"merge_layers": [2, 1]}, "must increase"),
        ({"merge_ratios": [0.5]}, "one entry for each"),
        ({"merge_policies": ["ratio", "odd"]}, "'odd' is unknown"),
        ({"patch_embed": "odd"}, "use video or naive"),
        ({"merge_survivor": "odd"}, "use last or first"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "'longrope' is unknown"),
    ],
)
def test_invalid_configurations_are_refused(model, change, words):
    with pytest.raises(ValueError, match=words):
        type(model.config)(**{**model.config.to_dict(), **change})
