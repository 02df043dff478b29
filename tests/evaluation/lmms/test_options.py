"""--model_args: the odd types that lmms-eval makes of the text, and what is refused."""

import pytest

from elva_jax.errors import ConfigError
from elva_jax.evaluation.lmms.generation import read_generation
from elva_jax.evaluation.lmms.options import parse_options
from elva_jax.inference.sampling import GREEDY, Sampling


def test_text_as_lmms_eval_splits_it():
    options = parse_options(
        {
            "pretrained": "/runs/a",
            "step": 7,
            "stage": "None",
            "weights": "'00ab12CD'",
            "mesh": "fsdp:-1/tensor:2",
            "high_frames": 8.0,
            "high_policy": "scene",
            "merging": False,
            "batch_size": "4",
            "max_batch_size": None,
            "device": "cuda:0",
        }
    )
    assert (options.pretrained, options.step, options.stage) == ("/runs/a", 7, None)
    assert (options.weights, options.merging, options.batch) == ("00ab12cd", False, 4)
    assert options.hybrid == {"high_frames": 8, "policy": "scene"}
    mesh = options.mesh_config
    assert mesh is not None
    assert (mesh.data, mesh.fsdp, mesh.context, mesh.tensor) == (1, -1, 1, 2)


def test_a_folder_that_is_a_number_and_other_names():
    assert parse_options({"checkpoint": 7, "batch_size": "auto:3"}).pretrained == "7"
    assert parse_options({"pretrained": "a", "checkpoint": "a", "batch_size": "auto"}).batch == 8
    assert parse_options({"pretrained": "a", "batch": 16, "batch_size": "1"}).batch == 16
    assert parse_options({"pretrained": "a"}).mesh_config is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"frame": 8}, r"no option 'frame'; did you mean frames\?"),
        ({"max_pixels": 8}, "no option 'max_pixels'"),
        ({"frames": -1.0}, r"model_args: frames=-1: must be at least 1"),
        ({"frames": 1.5}, "model_args: frames: must be a whole number"),
        ({"frames": "many"}, "model_args: frames: must be a whole number"),
        ({"frames": True}, "model_args: frames: must be a whole number"),
        ({"frames": 4, "low_frames": 4}, "frames does not go together with hybrid resolution"),
        ({"dtype": "bf16"}, r"'bf16' is not one of float32, bfloat16; did you mean bfloat16\?"),
        ({"merging": "maybe"}, "model_args: merging: must be true or false, got maybe"),
        ({"mesh": "fsdp=2"}, "'fsdp=2' is not like fsdp:2/tensor:4"),
        ({"mesh": "fsdp:2/fsdp:2"}, "is not like fsdp:2/tensor:4"),
        ({"weights": 1e22}, "'1e[+]22' is not the hash of weights"),
        ({"checkpoint": "b"}, "pretrained and checkpoint mean the same"),
        ({"pretrained": "None"}, "no checkpoint; give pretrained=RUN"),
        ({"batch_size": "many"}, "--batch_size: must be a whole number"),
        ({"likelihood": "total"}, "'total' is not one of sum, mean"),
    ],
)
def test_what_cannot_be_is_named(given, message):
    with pytest.raises(ConfigError, match=message):
        parse_options({"pretrained": "a", **given})


def read(**given):
    return read_generation(given, max_new_tokens=64, seed=3)


def test_generation_settings_of_tasks():
    made, ignored = read(
        max_new_tokens=16, temperature=0, do_sample=False, num_beams=1, until=["\n\n"], top_p=None
    )
    assert made.sampling == Sampling(stop=("\n\n",))
    assert (made.max_new_tokens, ignored) == (16, ())
    made, ignored = read(until="", image_aspect_ratio="original", num_beams=5)
    assert (made.max_new_tokens, made.sampling) == (64, GREEDY)
    assert ignored == ("image_aspect_ratio", "num_beams")


def test_a_temperature_matters_only_where_an_answer_is_drawn():
    assert read(temperature=0.7)[0].sampling == Sampling(temperature=0.7, seed=3)
    assert read(do_sample=True)[0].sampling == Sampling(temperature=1.0, seed=3)
    assert read(temperature=0.7, do_sample=False)[0].sampling == GREEDY
    assert read(temperature=0, top_p=0, do_sample=True)[0].sampling == GREEDY
    assert read(max_gen_toks=8.0)[0].max_new_tokens == 8


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_new_tokens": -1.0}, "max_new_tokens=-1: must be at least 1"),
        ({"temperature": "hot"}, "temperature: must be a number, got hot"),
        ({"until": [1]}, "until: must be texts"),
    ],
)
def test_generation_settings_that_cannot_be(given, message):
    with pytest.raises(ConfigError, match=message):
        read(**given)
