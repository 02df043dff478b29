"""Published MERV checkpoints, and the whole front with four encoders against PyTorch."""

import json

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from PIL import Image
from tests.models.merv.merv_torch import ChannelFusion, Front, NormedChannelFusion, ScalarFusion
from tests.models.towers.languagebind_torch import LanguageBindVideo
from tokenizers import Tokenizer, models

from elva_jax import cli
from elva_jax.checkpoints.restore import load_run
from elva_jax.config import schema
from elva_jax.config.load import load as load_config
from elva_jax.config.serialize import freeze
from elva_jax.data.decode_example import merv_settings
from elva_jax.data.prompt_format import load_tokenizer
from elva_jax.errors import ConvertError
from elva_jax.hf import merv
from elva_jax.hf.import_checkpoint import import_weights
from elva_jax.hf.load import read_config
from elva_jax.hf.param_mapping import plan
from elva_jax.models.build import parameter_shapes
from elva_jax.models.merv.embed import MervEmbed
from elva_jax.models.merv.fusion import Fusion
from elva_jax.models.qwen2 import Qwen2
from elva_jax.models.towers import dinov2
from elva_jax.utils.trees import flatten_paths
from elva_jax.video.layout import Text, TokenLayout, build_layout
from elva_jax.video.merv import read_merv_patches
from elva_jax.video.resize import LazyFrame

# 8 frames in 4 slots: LanguageBind sees two clips of 2, ViViT 8 frames in tubelets of 2.
FRAMES, SLOTS, GRID, QUERY, WIDTH, ROWS = 8, 4, 3, 12, 16, 40
SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = {"rms_norm_eps": 1e-2, "rope_theta": 50.0}  # neither has a default's value
# Of a size that the crop scales by 2, so that no pixel is near the edge of rounding.
VIDEO = np.random.default_rng(3).integers(0, 256, (FRAMES, 42, 62, 3), np.uint8)


def languagebind(folder, randomise):
    vision = SMALL | {"image_size": 21, "patch_size": 5, "num_frames": 2, "hidden_act": "gelu"}
    vision |= {"intermediate_size": 16, "layer_norm_eps": 1e-5, "add_time_attn": True}
    model = randomise(LanguageBindVideo(vision))
    folder.mkdir()
    config = {"model_type": "LanguageBindVideo", "vision_config": vision, "projection_dim": 16}
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(model.state_dict(), folder / "model.safetensors")

    def features(video):
        height, width = video.shape[1:3]
        frames = torch.tensor(video[::2]).permute(0, 3, 1, 2).float()
        scaled = torch.nn.functional.interpolate(
            frames, (21, 21 * width // height), mode="bilinear"
        )
        left = round((scaled.shape[3] - 21) / 2)
        pixels = scaled[..., left : left + 21].round().permute(0, 2, 3, 1) / 127.5 - 1
        states, _ = model.vision_model(pixels.unflatten(0, (2, 2)))
        return states[-2][:, :, 1:].reshape(4, 4, 4, -1)

    return features


def dino(folder, randomise):
    config = transformers.Dinov2WithRegistersConfig(
        **SMALL, mlp_ratio=2, image_size=25, patch_size=5
    )
    model = randomise(transformers.Dinov2WithRegistersModel(config))
    model.save_pretrained(folder)

    def features(video):
        pixels = resized(video[::2], 25, "BICUBIC") / 255
        mean, std = (torch.tensor(each, dtype=torch.float32) for each in (dinov2.MEAN, dinov2.STD))
        normalized = ((pixels - mean) / std).permute(0, 3, 1, 2)
        out = model(pixel_values=normalized, output_hidden_states=True)
        return out.hidden_states[-2][:, 5:].unflatten(1, (5, 5))

    return features


def vivit(folder, randomise):
    config = transformers.VivitConfig(
        **SMALL, intermediate_size=16, image_size=16, num_frames=8, tubelet_size=[2, 8, 8]
    )
    model = randomise(transformers.VivitForVideoClassification(config))
    model.save_pretrained(folder)

    def features(video):
        pixels = resized(video, 16, "BILINEAR") / 127.5 - 1
        out = model.vivit(pixel_values=pixels.permute(0, 3, 1, 2)[None])
        return out.last_hidden_state[0, 1:].reshape(4, 2, 2, -1)

    return features


def siglip(folder, randomise):
    config = transformers.SiglipVisionConfig(
        **SMALL, intermediate_size=16, image_size=20, patch_size=4, hidden_act="gelu"
    )
    model = randomise(transformers.SiglipVisionModel(config))
    model.save_pretrained(folder)

    def features(video):
        pixels = resized(video[::2], 20, "BICUBIC") / 127.5 - 1
        out = model(pixel_values=pixels.permute(0, 3, 1, 2), output_hidden_states=True)
        return out.hidden_states[-2].unflatten(1, (5, 5))

    return features


TOWERS = {"languagebind": languagebind, "dinov2": dino, "vivit": vivit, "siglip": siglip}


def resized(video, size, how):
    frames = [Image.fromarray(x).resize((size, size), Image.Resampling[how]) for x in video]
    return torch.tensor(np.stack([np.asarray(frame) for frame in frames])).float()


class Published:
    """A published run in a folder, its towers, and their statement in PyTorch."""

    def __init__(self, root, randomise):
        self.root, self.config = root, schema.base()
        self.towers = [make(root / name, randomise) for name, make in TOWERS.items()]
        for name in TOWERS:
            folder = root / name
            text = json.loads((folder / "config.json").read_text())
            self.config.encoders[name] = schema.tower()
            self.config.encoders[name].update(read_config(text, str(folder))[1])
            self.config.encoders[name].init_from = str(folder)
        self.config.encoders.vivit.features = "last"
        self.config.model.update(
            vocab_size=ROWS, hidden_size=WIDTH, intermediate_size=24, num_layers=2, num_heads=2,
            num_kv_heads=2, head_dim=8, attention_bias=False, tie_embeddings=False,
            patch_embed="merv", dtype="float32", max_position=64, **LLAMA
        )  # fmt: skip
        self.config.model.merv.update(
            encoders=tuple(TOWERS), num_frames=FRAMES, slots=SLOTS, grid=GRID,
            fusion_width=QUERY, geometry="published",
        )  # fmt: skip
        self.config.tokenizer, self.config.curriculum = self.tokenizer(root / "llama"), ("sft",)
        self.config.stages.sft = schema.stage()
        self.config.stages.sft.data.prompt_format = "llama2_base"
        self.front = randomise(Front([24] * 4, QUERY, WIDTH, SLOTS, GRID))
        llama = transformers.LlamaConfig(
            vocab_size=ROWS, hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=64, **LLAMA
        )  # fmt: skip
        self.llm = randomise(transformers.LlamaForCausalLM(llama))

    def tokenizer(self, folder):
        words = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=words, bos_token="<s>", eos_token="</s>"
        )
        tokenizer.save_pretrained(folder)
        return str(folder)

    def groups(self):
        front = self.front
        llm = {f"llm.{name}": value for name, value in self.llm.state_dict().items()}
        fusion = front.feature_fusion.state_dict()
        projectors = front.projectors.state_dict()
        return {"projectors": projectors, "feature_fusion": fusion, "llm_backbone": llm}

    def write(self, folder, groups=None, encoders=tuple(TOWERS)):
        (folder / "checkpoints").mkdir(parents=True)
        ids = [f"{name}-video" for name in encoders]
        (folder / "config.json").write_text(json.dumps({"model": {"encoders": ids, "frames": [4]}}))
        held = {"model": groups or self.groups(), "optimizer": {"state": {}}, "step": 3}
        torch.save(held, folder / "checkpoints/latest-checkpoint.pt")
        return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory, randomise):
    return Published(tmp_path_factory.mktemp("merv"), randomise)


@pytest.fixture(scope="module")
def imported(published):
    source, out = published.write(published.root / "published"), published.root / "imported"
    done = import_weights(source, out, published.config, allow_pickle=True)
    assert done.absent == ()
    return load_run(out)


def test_the_front_equals_torch(published, imported):
    """From the pixels of a video that is no square to the decoder's visual tokens."""
    model = imported.config.model
    settings = merv_settings(model)
    patches = read_merv_patches([*map(LazyFrame.from_array, VIDEO)], settings)
    layout = TokenLayout.stack([build_layout([settings.clip, Text((1,))])])

    @jax.jit
    def run(params, patches, layout):
        embed, variables = MervEmbed(model), {"params": params}
        weights = embed.apply(variables, patches, method="fusion_weights")
        return embed.apply(variables, patches, layout), weights

    tokens, weights = run(imported.params["elva"]["patch_embed"], patches[None], layout)
    with torch.no_grad():
        features = [tower(VIDEO)[None] for tower in published.towers]
        expected, theirs = published.front(features)
    assert expected.shape == (1, SLOTS * GRID**2, WIDTH)
    np.testing.assert_allclose(weights, theirs, atol=1e-4)
    assert weights.min() > 0.01
    np.testing.assert_allclose(tokens[:, :-1], expected, atol=1e-4)


def test_the_decoder_is_that_of_the_checkpoint(published, imported):
    decoder = flatten_paths(imported.params["elva"]["decoder"])
    ours = {name: np.asarray(value) for name, value in decoder.items()}
    theirs = {name: value.numpy() for name, value in published.llm.state_dict().items()}
    np.testing.assert_array_equal(ours["embed_tokens"], theirs["model.embed_tokens.weight"])
    np.testing.assert_array_equal(ours["lm_head"], theirs["lm_head.weight"].T)
    for layer in range(2):
        key = theirs[f"model.layers.{layer}.self_attn.k_proj.weight"]
        np.testing.assert_array_equal(ours["layers/k_proj/kernel"][layer], key.T)


@pytest.mark.parametrize("kind", ["scalar", "channels", "channels_norm"])
def test_other_fusions(published, tmp_path, randomise, kind):
    """Their files hold `scalar`, `projector`, or after a norm `0` and `1.projector`."""
    kinds = {"channels": ChannelFusion, "channels_norm": NormedChannelFusion}
    theirs = kinds[kind](4, WIDTH) if kind in kinds else ScalarFusion(4)
    groups, config = published.groups(), published.config.copy_and_resolve_references()
    groups["feature_fusion"] = randomise(theirs).state_dict()
    config.model.merv.fusion = kind
    for encoder in config.encoders.values():
        encoder.init_from = "random"
    source = published.write(tmp_path / "published", groups)
    import_weights(source, tmp_path / "out", config, allow_pickle=True)
    run = load_run(tmp_path / "out")
    tokens = np.random.default_rng(0).normal(size=(4, 3, 5, WIDTH)).astype(np.float32)
    params = run.params["elva"]["patch_embed"]["fusion"]
    ours, _ = jax.jit(Fusion(run.config.model).apply)({"params": params}, list(tokens))
    with torch.no_grad():
        expected = theirs(list(torch.tensor(tokens)))
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_the_decoder_is_exported_as_a_llama(published, imported, tmp_path, capsys):
    """By the command. Transformers reads what the checkpoint was made of; our logits are equal."""
    words = ["convert", "export", str(published.root / "imported"), str(tmp_path / "out")]
    assert cli.main(words) == 0
    assert "LlamaForCausalLM" in capsys.readouterr().out
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="float32")
    assert type(exported) is transformers.LlamaForCausalLM
    ids = np.random.default_rng(0).integers(3, ROWS, (2, 24), np.int32)
    where = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    decoder = Qwen2(imported.config.model)
    ours = jax.jit(decoder.apply)(
        {"params": imported.params["elva"]["decoder"]}, ids, where, np.ones_like(ids)
    )
    with torch.no_grad():
        got, original = (
            llm(torch.tensor(ids, dtype=torch.long)).logits for llm in (exported, published.llm)
        )
    np.testing.assert_allclose(got, original, atol=1e-6)
    np.testing.assert_allclose(got, ours, atol=1e-4)
    assert np.std(ours) > 0.1
    names = ("bos_token_id", "eos_token_id")
    assert [getattr(exported.generation_config, name) for name in names] == [1, 2]
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "</s>"


def test_names_of_earlier_checkpoints_and_encoders_without_weights(published, tmp_path):
    """One encoder, whose projector and fusion have other names; its tower is left to training."""
    groups, config = published.groups(), published.config.copy_and_resolve_references()
    config.model.merv.encoders = ("languagebind",)
    config.encoders.languagebind.init_from = "random"
    one = {
        name.removeprefix("0."): value
        for name, value in groups["projectors"].items()
        if name.startswith("0.")
    }
    groups = {
        "projector": one,
        "adapter": groups["feature_fusion"],
        "llm_backbone": groups["llm_backbone"],
    }
    source = published.write(tmp_path / "earlier", groups, ("languagebind",))
    done = import_weights(source, tmp_path / "out", config, allow_pickle=True, dtype="bfloat16")
    assert done.absent == ("elva/patch_embed/tower_languagebind",)
    run = load_run(tmp_path / "out")
    kernel = run.params["elva"]["patch_embed"]["projector_languagebind"]["kernel"]
    expected = one["projector.projector.weight"].T.bfloat16().float()
    np.testing.assert_array_equal(np.asarray(kernel, np.float32), expected)
    assert load_tokenizer(run.config, run.tokenizer_dir).eos_token == "</s>"


def test_safetensors_need_no_pickle(published, imported, tmp_path):
    source = published.write(tmp_path / "safe")
    flat = {
        f"{group}.{name}": value.contiguous().clone()
        for group, held in published.groups().items()
        for name, value in held.items()
    }
    safetensors.torch.save_file(flat, source / "checkpoints/latest-checkpoint.safetensors")
    import_weights(source, tmp_path / "out", published.config)
    expected = flatten_paths(imported.params["elva"]["patch_embed"])
    got = flatten_paths(load_run(tmp_path / "out").params["elva"]["patch_embed"])
    assert got.keys() == expected.keys()
    for path, value in got.items():
        np.testing.assert_array_equal(value, expected[path])


def test_the_published_model_fits_its_config(config_dir):
    """Names and shapes as they were published, of LLaMA-2-7B and the four encoders."""
    config = freeze(load_config(f"{config_dir / 'merv.py'}:recipe=full,llm=llama2_7b"))
    width, inner, query = 4096, 11_008, 3072
    attention, llm = "feature_fusion.attention.", "llm_backbone.llm."
    shapes = {
        "feature_fusion.Q": (1, query),
        f"{attention}q_proj_weight": (query, query),
        f"{attention}k_proj_weight": (query, width),
        f"{attention}v_proj_weight": (query, width),
        f"{attention}in_proj_bias": (3 * query,),
        f"{attention}out_proj.weight": (query, query),
        f"{attention}out_proj.bias": (query,),
        f"{llm}lm_head.weight": (32_064, width),
        f"{llm}model.embed_tokens.weight": (32_064, width),
        f"{llm}model.norm.weight": (width,),
    }
    for k, features in enumerate((1024, 1024, 768, 768)):
        shapes[f"projectors.{k}.projector.projector.weight"] = (width, features)
        shapes[f"projectors.{k}.projector.projector.bias"] = (width,)
    for k in range(32):
        layer = f"{llm}model.layers.{k}."
        shapes |= {f"{layer}self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        shapes |= {f"{layer}mlp.{name}_proj.weight": (inner, width) for name in ("gate", "up")}
        shapes[f"{layer}mlp.down_proj.weight"] = (width, inner)
        shapes[f"{layer}input_layernorm.weight"] = (width,)
        shapes[f"{layer}post_attention_layernorm.weight"] = (width,)
        shapes[f"{layer}self_attn.rotary_emb.inv_freq"] = (64,)
    wanted = {
        path.removeprefix("elva/"): shape
        for path, shape in parameter_shapes(config, "elva").items()
    }
    dtypes = dict.fromkeys(shapes, np.dtype(np.float32))
    found = plan(merv.table(config.model), shapes, dtypes, wanted, "the published model")
    left = {path.split("/")[1] for path in wanted.keys() - found.keys()}
    assert left == {f"tower_{name}" for name in ("languagebind", "dinov2", "vivit", "siglip")}


def refusal(published, folder, out, config=None, **options):
    with pytest.raises(ConvertError) as caught:
        import_weights(folder, out, config or published.config, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_refusals_say_what_to_do(published, imported, tmp_path):
    source, out, pickle = published.root / "published", tmp_path / "out", {"allow_pickle": True}
    assert "give --allow-pickle" in refusal(published, source, out)
    with pytest.raises(ConvertError, match=r"such as --config configs/merv\.py"):
        import_weights(source, out, None, **pickle)

    config = published.config.copy_and_resolve_references()
    config.model.merv.encoders = tuple(reversed(TOWERS))
    message = refusal(published, source, out, config, **pickle)
    assert "the kinds siglip, vivit, dinov2, languagebind; give them in that order" in message

    config = published.config.copy_and_resolve_references()
    config.model.merv.fusion = "scalar"
    assert "its fusion is attention, the run has model.merv.fusion = scalar" in refusal(
        published, source, out, config, **pickle
    )

    groups = published.groups()
    groups["feature_fusion"] = {"mlp.weight": torch.zeros(5)}
    message = refusal(published, published.write(tmp_path / "mlp", groups), out, **pickle)
    assert "its fusion has feature_fusion.mlp.weight; only attention by" in message

    groups = published.groups()
    groups["projectors"]["1.projector.projector.bias"] = torch.zeros(5)
    wrong = published.write(tmp_path / "wrong", groups)
    message = refusal(published, wrong, out, **pickle)
    assert "projectors.1.projector.projector.bias is [5], expected [16]" in message

    groups = published.groups()
    groups["projectors"]["2.convolution_pooling.weight"] = torch.zeros(5)
    message = refusal(published, published.write(tmp_path / "conv", groups), out, **pickle)
    assert "have convolution_pooling; only averages with one linear layer" in message

    (tmp_path / "empty/checkpoints").mkdir(parents=True)
    torch.save(
        {"model": {"a": torch.zeros(1)}}, tmp_path / "empty/checkpoints/latest-checkpoint.pt"
    )
    assert "holds no 'model' with" in refusal(published, tmp_path / "empty", out, **pickle)
    assert not out.exists()
