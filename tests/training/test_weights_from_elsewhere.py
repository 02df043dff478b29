"""Tests of stages that start from Hugging Face folders: Qwen2, SigLIP and EVA-CLIP."""

import json

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers

from elva_jax.checkpoints.restore import load_run
from elva_jax.config import schema
from elva_jax.errors import CheckpointError, ConvertError
from elva_jax.hf.import_checkpoint import import_weights
from elva_jax.parallel.mesh import make_mesh
from elva_jax.tasks.api import train
from elva_jax.tasks.initial_weights import frozen_trees
from elva_jax.tasks.registry import make_task
from elva_jax.training.metric_writers import read_metrics
from elva_jax.training.setup import set_up


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A Qwen2 in bfloat16 with the shape of the toy run and a smaller vocabulary."""
    config = transformers.Qwen2Config(
        vocab_size=505, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=512, tie_word_embeddings=True,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("qwen")
    torch.manual_seed(0)
    transformers.Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    """A SigLIP with the shape of the toy run."""
    folder = tmp_path_factory.mktemp("siglip")
    config = transformers.SiglipVisionConfig(
        image_size=32,
        patch_size=16,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    transformers.SiglipVisionModel(config).save_pretrained(folder)
    return folder


def teachers_of(config, workdir):
    setup = set_up(make_task(config, "image"), make_mesh(config.mesh), 1)
    return frozen_trees(setup, workdir)


def teacher_of(config, workdir):
    return teachers_of(config, workdir)["teacher"]


def run_of(tiny_run, data_dir, stage, **settings):
    config = tiny_run.get_config(stage)
    config.data_dir = str(data_dir)
    config.stages[stage].steps = 1
    config.stages[stage].optimizer.update(name="adamw", learning_rate=0.0)
    if stage == "image":  # whose subject is the teacher
        config.model.update(num_layers=1, merge_layers=(0,))
    config.update_from_flattened_dict(
        {key.replace("__", "."): str(value) for key, value in settings.items()}
    )
    return config


@pytest.mark.parametrize("converted", [False, True])
def test_stage_starts_from_qwen2(tiny_run, data_dir, qwen, tmp_path, capsys, converted):
    """Starts from the folder, or from a conversion to bfloat16; training uses float32."""
    source = qwen
    config = run_of(tiny_run, data_dir, "sft")
    if converted:
        import_weights(qwen, tmp_path / "converted", config)
        source = tmp_path / "converted"
        assert load_run(source).params["elva"]["decoder"]["norm"]["scale"].dtype == "bfloat16"
    config.init_from = str(source)
    assert train(config, tmp_path / "run", progress=print) == 0
    told = capsys.readouterr().out
    origin = "stage converted, step 0" if converted else "model_type qwen2"
    assert (
        f"sft: starts from {source} ({origin});"
        " fresh: elva/patch_embed/frame, elva/patch_embed/k_kernel" in told
    )
    assert "unused" not in told
    decoder = load_run(tmp_path / "run").params["elva"]["decoder"]
    theirs = {
        name: value.float().numpy()
        for name, value in transformers.Qwen2ForCausalLM.from_pretrained(qwen, dtype=torch.bfloat16)
        .state_dict()
        .items()
    }
    np.testing.assert_array_equal(
        decoder["embed_tokens"][:505], theirs["model.embed_tokens.weight"]
    )
    for i in range(2):
        for name in ("gate_proj", "down_proj"):
            kernel = decoder["layers"][name]["kernel"]
            assert kernel.dtype == np.float32
            np.testing.assert_array_equal(
                kernel[i], theirs[f"model.layers.{i}.mlp.{name}.weight"].T
            )


def test_qwen2_of_another_shape_is_refused(tiny_run, data_dir, qwen, tmp_path):
    config = run_of(tiny_run, data_dir, "sft", init_from=qwen)
    config.model.intermediate_size = 40
    with pytest.raises(
        ConvertError,
        match=r"gate_proj\.weight is \[48, 32\], expected \[40, 32\] for \{\} = 0 …"
        " 1",
    ):
        train(config, tmp_path)


def test_guided_stage_uses_a_siglip_teacher(tiny_run, data_dir, siglip, tmp_path):
    config = run_of(tiny_run, data_dir, "image", teacher__init_from=siglip)
    assert train(config, tmp_path) == 0
    assert all(
        np.isfinite(line["loss"]) and line["tube"] > 0 for line in read_metrics(tmp_path / "image")
    )
    got = teacher_of(config, tmp_path)
    model = transformers.SiglipVisionModel.from_pretrained(siglip)
    np.testing.assert_array_equal(
        got["post_norm_scale"],
        dict(model.named_parameters())["post_layernorm.weight"].detach().numpy(),
    )


def test_guided_stage_uses_a_siglip_and_an_eva_clip_teacher(tiny_run, data_dir, siglip, tmp_path):
    vision = {
        "eva_model_name": "eva-clip-tiny",
        "image_size": 32,
        "patch_size": 16,
        "width": 16,
        "layers": 2,
        "head_width": 8,
        "mlp_ratio": 2.0,
    }
    rng = torch.Generator().manual_seed(0)
    shapes = {
        "cls_token": (1, 1, 16),
        "pos_embed": (1, 5, 16),
        "patch_embed.proj.weight": (16, 3, 16, 16),
        "patch_embed.proj.bias": (16,),
    }
    shapes |= {"norm.weight": (16,), "norm.bias": (16,)}
    for i in range(2):
        block = {
            "norm1.weight": (16,),
            "norm1.bias": (16,),
            "norm2.weight": (16,),
            "norm2.bias": (16,),
            "attn.qkv.weight": (48, 16),
        }
        block |= {
            "attn.q_bias": (16,),
            "attn.v_bias": (16,),
            "attn.proj.weight": (16, 16),
            "attn.proj.bias": (16,),
        }
        block |= {
            "mlp.fc1.weight": (32, 16),
            "mlp.fc1.bias": (32,),
            "mlp.fc2.weight": (16, 32),
            "mlp.fc2.bias": (16,),
        }
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    folder = tmp_path / "eva"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision}))
    state = {f"visual.{name}": torch.randn(shape, generator=rng) for name, shape in shapes.items()}
    safetensors.torch.save_file(state, folder / "model.safetensors")
    config = run_of(tiny_run, data_dir, "image")
    for name, kind, source in (("siglip", "siglip", siglip), ("eva", "eva_clip", folder)):
        config.teachers[name] = schema.ConfigDict(config.teacher.to_dict())
        config.teachers[name].update(kind=kind, init_from=str(source), weight=0.5)
    assert train(config, tmp_path / "run") == 0
    for line in read_metrics(tmp_path / "run" / "image"):
        assert np.isfinite(line["loss"])
        for term in ("tube", "contrastive"):
            each = [line[f"{term}/{name}"] for name in ("siglip", "eva")]
            assert min(each) > 0
            np.testing.assert_allclose(line[term], 0.5 * sum(each), rtol=1e-6)
    trees = teachers_of(config, tmp_path)
    np.testing.assert_array_equal(trees["eva"]["post_norm_bias"], state["visual.norm.bias"])
    assert "head" in trees["siglip"]
    config.teachers.eva.kind = "eva02_clip"
    with pytest.raises(
        ConvertError, match=r"kind is eva_clip, the run has teacher\.kind = eva02_clip"
    ):
        train(config, tmp_path / "other")


def test_teacher_of_another_shape_is_refused(tiny_run, data_dir, siglip, tmp_path):
    import_weights(siglip, tmp_path / "converted")
    config = run_of(tiny_run, data_dir, "image", teacher__init_from=tmp_path / "converted")
    tower = teacher_of(config, tmp_path)
    assert jax.tree.leaves(tower)[0].dtype == np.float32
    config.teacher.intermediate_size = 24
    with pytest.raises(
        CheckpointError, match=r"fc1_bias is float32\[32\], the run's teacher has float32\[24\]"
    ):
        teacher_of(config, tmp_path)
