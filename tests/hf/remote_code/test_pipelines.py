"""transformers' own entry points, on an exported folder: auto classes and pipelines."""

import numpy as np
import pytest
import transformers
from PIL import Image
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils import is_torchvision_available

from elva_jax import Request, testing

TOKENS, QUESTION = 5, "What?"
VIDEO_PROCESSOR = "video_processing_elva.ElvaVideoProcessor"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return str(testing.write_video(path, testing.tiny_video(6)))


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(testing.tiny_video(1, seed=3)[0])


def chat(*media):
    return [{"role": "user", "content": [*media, {"type": "text", "text": QUESTION}]}]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("Config", "ElvaConfig"),
        ("Processor", "ElvaProcessor"),
        ("ImageProcessor", "ElvaImageProcessor"),
        ("Model", "ElvaModel"),
        ("ModelForCausalLM", "ElvaForCausalLM"),
        ("ModelForImageTextToText", "ElvaForCausalLM"),
        ("ModelForMultimodalLM", "ElvaForCausalLM"),
    ],
)
def test_auto_classes(exported, name, wanted):
    auto = getattr(transformers, f"Auto{name}")
    assert type(auto.from_pretrained(exported, trust_remote_code=True)).__name__ == wanted


@pytest.mark.parametrize("task", ["image-text-to-text", "any-to-any"])
def test_a_pipeline_answers_as_elva_jax(exported, generator, clip, picture, task, monkeypatch):
    if not is_torchvision_available():  # asked for by transformers, which uses none of it here
        monkeypatch.setattr("transformers.pipelines.any_to_any.requires_backends", lambda *_: None)
    pipe = transformers.pipeline(task, model=str(exported), trust_remote_code=True)

    def said(messages, **options):
        found = pipe(text=messages, max_new_tokens=TOKENS, return_full_text=False, **options)
        return [each[0]["generated_text"] for each in found]

    requests = [Request(media, QUESTION) for media in (clip, [np.asarray(picture)], None)]
    wanted = [each.text for each in generator.generate(requests, max_new_tokens=TOKENS)]
    video, image = {"type": "video", "path": clip}, {"type": "image", "image": picture}
    assert said([chat(video), chat(image), chat()]) == wanted
    assert said([chat(video)] * 2, batch_size=2) == wanted[:1] * 2
    (two,) = said([chat(video)], processor_kwargs={"num_frames": 2})
    (off,) = said([chat(video)], generate_kwargs={"merging": False})
    assert len({two, off, *wanted}) == 5
    turn = {"role": "assistant", "content": [{"type": "text", "text": "A red"}]}
    (whole,) = pipe(text=[*chat(), turn], max_new_tokens=TOKENS)[0]["generated_text"][1:]
    assert whole["content"][0]["text"].startswith("A red")


def test_pipelines_of_text(exported, generator):
    pipe = transformers.pipeline("text-generation", model=str(exported), trust_remote_code=True)
    found = pipe(
        [{"role": "user", "content": QUESTION}], max_new_tokens=TOKENS, return_full_text=False
    )
    wanted = generator.answer(None, QUESTION, max_new_tokens=TOKENS)
    assert found[0]["generated_text"] == wanted
    pipe = transformers.pipeline("feature-extraction", model=str(exported), trust_remote_code=True)
    assert np.shape(pipe("What moves?"))[2] == generator.config.model.hidden_size


def test_processors_of_images_and_videos_cut_our_patches(exported, generator, clip, picture):
    """Loaded without the auto class for videos, which wants torchvision."""
    processor = get_class_from_dynamic_module(VIDEO_PROCESSOR, exported).from_pretrained(exported)
    found = processor([clip, testing.tiny_video(1)], return_tensors="pt", num_frames=3)
    read = generator.read_media(clip, frames=3)
    assert found["pixel_values"].shape == (2, 3 * 16, 192)
    np.testing.assert_array_equal(found["pixel_values"][0], read.patches)
    assert found["grids"] == [[(4, 4)] * 3, [(4, 4)]]
    assert not found["pixel_values"][1, 16:].any()
    auto = transformers.AutoImageProcessor.from_pretrained(exported, trust_remote_code=True)
    np.testing.assert_array_equal(
        auto(picture)["pixel_values"][0], generator.read_media([np.asarray(picture)]).patches
    )
    with pytest.raises(ValueError, match="there are no images or videos"):
        processor([])
