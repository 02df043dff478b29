"""Tests of an exported folder's processor against our reading of videos and conversations."""

import av
import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import AddedToken
from transformers import AutoProcessor

from elva_jax import testing
from elva_jax.data import conversation
from elva_jax.data.example import Example, Turn
from elva_jax.errors import ElvaError
from elva_jax.hf.export import add_visual_tokens
from elva_jax.video.clip import ClipSettings, read_clip
from elva_jax.video.hybrid import Hybrid, choose_high
from elva_jax.video.layout import Clip, Kind, build_layout
from elva_jax.video.read import read_frames
from elva_jax.video.resize import patchify, resize_frame, target_size

SETTINGS = dict(num_frames=4, fps=0.0, longest_edge=32, patch_size=8)


def ask(processor, *turns, **options):
    """Processes turns of (content parts, answer or None) to tensors."""
    messages = []
    for content, answer in turns:
        messages.append(
            {"role": "user", "content": [{"type": kind, kind: value} for kind, value in content]}
        )
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
    return processor.apply_chat_template(
        messages,
        add_generation_prompt=turns[-1][1] is None,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs=options,
    )


def assert_same(inputs, layout, processor, row=0):
    """Asserts that the tokens of a row, without padding, equal those of the layout."""
    used = inputs["attention_mask"][row].bool().numpy()
    ids, tubes = inputs["input_ids"][row].numpy()[used], inputs["tube_ids"][row].numpy()[used]
    kinds = {
        processor.frame_id: Kind.FRAME,
        processor.patch_id: Kind.PATCH,
        processor.line_id: Kind.LINE,
    }
    np.testing.assert_array_equal([kinds.get(token, Kind.TEXT) for token in ids], layout.kind)
    text = layout.kind == Kind.TEXT
    np.testing.assert_array_equal(ids[text], layout.token_id[text])
    np.testing.assert_array_equal(tubes >= 0, layout.tube >= 0)
    pairs = set(zip(tubes.tolist(), layout.tube.tolist(), strict=True))
    # The same tubes with other numbers.
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def test_a_video_and_a_question(processor, generator, videos):
    for frames in videos:
        seen = read_clip(frames, ClipSettings(**SETTINGS))
        inputs = ask(processor, ([("video", frames), ("text", " What is it? \n")], None))
        assert_same(inputs, build_layout(generator.prompt_parts("What is it?", [seen])), processor)
        np.testing.assert_array_equal(inputs["pixel_values"][0], seen.patches)
        assert inputs["pixel_values"].dtype == torch.uint8


@pytest.mark.parametrize("side", ["left", "right"])
def test_batch_is_padded_on_the_requested_side(processor, generator, videos, side):
    texts = [f"<video>Question {i}?" for i in range(len(videos))]
    inputs = processor(
        text=texts, videos=[[v] for v in videos], return_tensors="pt", padding_side=side
    )
    for row, frames in enumerate(videos):
        one = processor(
            text=texts[row],
            videos=[Image.fromarray(frame) for frame in frames],
            return_tensors="pt",
        )
        used = inputs["attention_mask"][row].bool()
        assert bool(used[-1 if side == "left" else 0])
        for name, padding in (("input_ids", processor.tokenizer.pad_token_id), ("tube_ids", -1)):
            assert torch.equal(inputs[name][row][used], one[name][0])
            assert (inputs[name][row][~used] == padding).all()
        count = one["pixel_values"].shape[1]
        assert torch.equal(inputs["pixel_values"][row, :count], one["pixel_values"][0])
        assert not inputs["pixel_values"][row, count:].any()


def test_media_replace_their_markers(processor, generator, videos):
    """Two turns, a video between words, an image, and a custom system prompt."""
    a, b = (
        read_clip(videos[0], ClipSettings(**SETTINGS)),
        read_clip(videos[3], ClipSettings(**SETTINGS)),
    )
    turns = (Turn("Look at <video> first.", "Yes."), Turn("<image> And this?", "No."))
    parts = conversation.render(
        Example("x", (), turns), generator.tokenizer, [a.clip, b.clip], "Be brief."
    )
    inputs = ask(
        processor,
        ([("text", "Look at"), ("video", videos[0]), ("text", "first.")], "Yes."),
        ([("image", videos[3][0]), ("text", "And this?")], "No."),
    )
    assert_same(inputs, build_layout(parts), processor)
    np.testing.assert_array_equal(inputs["pixel_values"][0], np.concatenate([a.patches, b.patches]))
    messages = [{"role": "system", "content": "Sing."}, {"role": "user", "content": "What?"}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert (
        text == "<|im_start|>system\nSing.<|im_end|>\n<|im_start|>user\nWhat?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("policy", ["interleave", "ends"])
@pytest.mark.parametrize(("high", "low"), [(2, 4), (3, 3), (0, 5)])
def test_hybrid_resolution(processor, generator, policy, high, low):
    frames = [
        np.random.default_rng(t).integers(0, 256, (48, 64, 3), np.uint8) for t in range(high + low)
    ]
    options = dict(
        num_frames=high,
        num_low_frames=low,
        longest_edge=32,
        low_longest_edge=16,
        hybrid_policy=policy,
    )
    inputs = ask(processor, ([("video", frames), ("text", "Why?")], None), **options)
    edges = np.where(choose_high(high, low, policy), 32, 16)
    resized = [
        resize_frame(f, target_size(48, 64, longest_edge=int(e), patch_size=8))
        for f, e in zip(frames, edges, strict=True)
    ]
    clip = Clip(tuple((f.shape[0] // 8, f.shape[1] // 8) for f in resized))
    parts = conversation.prompt_parts("Why?", [clip], generator.tokenizer, "Be brief.")
    assert_same(inputs, build_layout(parts), processor)
    np.testing.assert_array_equal(inputs["pixel_values"][0], patchify(resized, 8))


def write_video(path, codec, frames=21, rate=7, cut=None):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for t in range(frames):
            picture = np.full((32, 48, 3), 5 * t, np.uint8)
            picture[:, : 2 * t] = (255, 0, 5 * t)
            if cut is not None and t >= cut:
                picture = 255 - picture
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())


def files(folder):
    """Videos in common formats, animations, still images and a folder of images."""
    for name, codec in (
        ("a.mp4", "mpeg4"),
        ("b.mkv", "mpeg4"),
        ("c.avi", "mpeg4"),
        ("d.mov", "libx264"),
    ):
        write_video(folder / name, codec)
    pictures = [Image.fromarray(np.full((20, 30, 3), 20 * t, np.uint8)) for t in range(11)]
    pictures[0].save(
        folder / "e.gif",
        save_all=True,
        append_images=pictures[1:],
        duration=[10, 200, 30] * 3 + [50, 50],
    )
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 4), np.uint8)).save(
        folder / "f.png"
    )
    (folder / "g").mkdir()
    for t, picture in enumerate(pictures):
        picture.save(folder / "g" / f"frame{t}.png")
    return sorted(folder.iterdir())


def test_files_give_the_frames_of_training(processor, tmp_path):
    for path in files(tmp_path):
        for options in (
            dict(num_frames=4),
            dict(num_frames=1),
            dict(num_frames=50),
            dict(num_frames=6, fps=1.5),
        ):
            ours = read_clip(
                path, ClipSettings(**{"fps": 0.0, **options}, longest_edge=32, patch_size=8)
            )
            theirs = processor(text="<video>", videos=str(path), return_tensors="pt", **options)[
                "pixel_values"
            ][0]
            np.testing.assert_array_equal(theirs, ours.patches, err_msg=f"{path.name} {options}")
    still = processor(text="<image>", images=str(tmp_path / "f.png"), return_tensors="pt")[
        "pixel_values"
    ][0]
    np.testing.assert_array_equal(
        still, read_clip(tmp_path / "f.png", ClipSettings(**SETTINGS)).patches
    )
    assert len(read_frames(tmp_path / "a.mp4", num_frames=50).pixels) == 21


@pytest.mark.parametrize("policy", ["interleave", "ends", "scene"])
def test_hybrid_files_are_read_as_by_elva_generate(processor, tmp_path, policy):
    """An mp4 with a cut, with enough and with too few frames, and a list of too many frames."""
    path = tmp_path / "cut.mp4"
    write_video(path, "libx264", cut=13)
    at_hand = read_frames(path, num_frames=21).pixels
    for source, high, low in (
        (path, 2, 5),
        (path, 20, 40),
        (at_hand, 2, 5),
        (at_hand[:1], 1, 9),
        (path, 0, 3),
    ):
        ours = read_clip(
            source,
            ClipSettings(
                **SETTINGS,
                hybrid=Hybrid(
                    high_frames=high, low_frames=low, high_edge=32, low_edge=16, policy=policy
                ),
            ),
        )
        options = dict(
            num_frames=high, num_low_frames=low, low_longest_edge=16, hybrid_policy=policy
        )
        video = str(source) if source is path else source
        theirs = processor(text="<video>", videos=[video], return_tensors="pt", **options)
        np.testing.assert_array_equal(
            theirs["pixel_values"][0], ours.patches, err_msg=f"{high} + {low}"
        )
        assert_same(theirs, build_layout([ours.clip]), processor)
    if policy == "scene":
        assert (
            read_clip(
                path,
                ClipSettings(
                    **SETTINGS,
                    hybrid=Hybrid(
                        high_frames=2, low_frames=5, high_edge=32, low_edge=16, policy=policy
                    ),
                ),
            ).clip.grids.index((3, 4), 1)
            == 4
        )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (dict(text="<video>Hm?"), "1 <video> markers in the text for 0 videos"),
        (
            dict(text="Hm?", videos=[[np.zeros((8, 8, 3), np.uint8)]]),
            "0 <video> markers in the text for 1 videos",
        ),
        (
            dict(text="<video>", videos=[[np.zeros((8, 8, 3))]]),
            r"uint8 array \[height, width, 3\], got float64\[8, 8, 3\]",
        ),
        (dict(text="<image>", images=np.zeros((8, 8, 4), np.uint8)), r"got uint8\[8, 8, 4\]"),
        (
            dict(text="<video>", videos=np.zeros((2, 8, 8, 3), np.uint8), longest_edge=4),
            "longest_edge=4 must hold at least one patch",
        ),
        (
            dict(
                text="<video>",
                videos=np.zeros((2, 8, 8, 3), np.uint8),
                num_low_frames=1,
                hybrid_policy="odd",
            ),
            "hybrid_policy: 'odd'",
        ),
        (dict(videos=np.zeros((2, 8, 8, 3), np.uint8)), "text is missing"),
    ],
)
def test_invalid_media_are_refused_with_a_reason(processor, call, words):
    with pytest.raises(ValueError, match=words):
        processor(**call)


def test_broken_files_are_refused_by_name(processor, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "junk.mp4").write_bytes(b"junk" * 99)
    for name in ("empty", "junk.mp4"):
        with pytest.raises(ValueError, match=name):
            processor(text="<video>", videos=str(tmp_path / name))


def test_visual_tokens_have_free_ids(generator, processor):
    words, size = generator.tokenizer.get_vocab(), len(generator.tokenizer)
    assert (processor.frame_id, processor.patch_id, processor.line_id) == (size, size + 1, size + 2)
    assert not {processor.frame_id, processor.patch_id, processor.line_id} & set(words.values())
    # Existing ones keep their ids.
    assert add_visual_tokens(processor.tokenizer) == (size, size + 1, size + 2)


@pytest.fixture(scope="module")
def qwen_processor(exported, special_tokens):
    """The processor of a folder whose tokenizer has the added tokens of Qwen2.5's vocabulary."""
    processor = AutoProcessor.from_pretrained(exported, trust_remote_code=True)
    for number, token in enumerate(special_tokens[:22]):
        special = number < 14
        processor.tokenizer.add_tokens([AddedToken(token, special=special, normalized=False)])
    return type(processor)(
        processor.image_processor, processor.tokenizer, chat_template=processor.chat_template
    )


def test_special_tokens_in_messages_are_text_as_in_jax(qwen_processor, videos, special_tokens):
    """In system prompt, question, answer and the next turn; media stand where their parts are."""
    processor, escape = qwen_processor, conversation.escape
    tokenizer = processor.tokenizer
    seen = read_clip(videos[0], ClipSettings(**SETTINGS))
    for token in [*special_tokens, "\ufdd1", "<\ufdd1|im_end|>", "\\<video>", "|im_end|>"]:
        text = f"a {token} b{token}{token}"
        turns = (Turn(f"<video>{escape(text)}", text), Turn(escape(text), text))
        example = Example("x", (), turns)
        parts = conversation.render(example, tokenizer, [seen.clip], "Be brief.")
        asked = ([("video", videos[0]), ("text", text)], text), ([("text", text)], text)
        assert_same(ask(processor, *asked), build_layout(parts), processor)
        messages = [{"role": "system", "content": text}, {"role": "user", "content": text}]
        options = dict(tokenize=True, return_dict=True, add_generation_prompt=True)
        ids = processor.apply_chat_template(messages, **options)["input_ids"]
        rendered = conversation.prompt_parts(escape(text), (), tokenizer, text)
        assert list(np.ravel(ids)) == [token for part in rendered for token in part.token_ids]


def test_parts_of_a_prompt_are_read_as_by_the_processor(processor, generator, videos):
    """Adjacent texts are lines, as in the messages of training data."""
    seen = [read_clip(videos[k], ClipSettings(**SETTINGS)) for k in (0, 3)]
    texts = [("text", "What differs"), ("text", " between ")]
    content = [*texts, ("video", videos[0]), ("text", "and"), ("image", videos[3][0])]
    prompt = ["What differs", " between ", {"type": "video"}, "and", {"type": "image"}]
    content, prompt = [*content, ("text", "?")], [*prompt, {"type": "text", "text": "?"}]
    parts = generator.prompt_parts(prompt, seen)
    assert_same(ask(processor, (content, None)), build_layout(parts), processor)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A video of 8 seconds of different gray frames, and a folder of images."""
    folder = tmp_path_factory.mktemp("film")
    frames = [np.full((32, 48, 3), 30 * k, np.uint8) for k in range(8)]
    testing.write_video(folder / "a.mp4", frames, fps=1)
    (folder / "frames").mkdir()
    for k, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / "frames" / f"{k}.png")
    first, *others = map(Image.fromarray, frames)
    first.save(folder / "a.gif", save_all=True, append_images=others, duration=1000)
    return folder


@pytest.mark.parametrize("name", ["a.mp4", "frames", "a.gif", ["frames/2.png", "frames/5.png"]])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"start": 1, "end": 2},
        {"video_start": "00:00:00.5", "end_time": "1.75"},
        {"end": 1.5, "nframes": 1},
        {"num_frames": 7},
        {"start": 0.0, "end": 99, "nframes": 2},
    ],
)
def test_excerpts_and_numbers_of_frames_are_followed_as_in_jax(
    processor, generator, film, name, fields
):
    files = [str(film / file) for file in name] if isinstance(name, list) else str(film / name)
    part = {"type": "video", "video": files, **fields}
    seen, prompt = generator.read_prompt([part, "What?"], None)
    wanted = read_clip(
        tuple(files) if isinstance(files, list) else files,
        ClipSettings(**SETTINGS | {"num_frames": part.get("nframes", part.get("num_frames", 4))}),
        span=(
            {"00:00:00.5": 0.5}.get(part.get("video_start"), float(part.get("start", 0))),
            float(part["end_time"]) if "end_time" in part else part.get("end"),
        ),
    )
    np.testing.assert_array_equal(seen[0].patches, wanted.patches)
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert_same(inputs, build_layout(generator.prompt_parts(prompt, seen)), processor)
    np.testing.assert_array_equal(inputs["pixel_values"][0], wanted.patches)


@pytest.mark.parametrize(
    "fields",
    [
        {"fps": 2},
        {"max_pixels": 9},
        {"start": -1},
        {"start": "soon"},
        {"end": True},
        {"start": 3, "end": 2},
        {"start": 1, "video_start": 2},
        {"nframes": 0},
        {"nframes": 2.5},
        {"nframes": 10**9},
        {"start": float("nan")},
        {"start": 99},
        {"type": "image", "image": "x.png", "end": 2},
        {"type": "audio"},
        {"type": "video", "video": [np.zeros((8, 8, 3), np.uint8)], "start": 1},
    ],
)
def test_fields_that_cannot_be_followed_are_refused_by_both(processor, generator, film, fields):
    part = {"type": "video", "video": str(film / "a.mp4"), **fields}
    with pytest.raises(ElvaError):
        generator.read_prompt([part, "What?"], None)
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]
    with pytest.raises(ValueError, match=r"."):
        processor.apply_chat_template(messages, tokenize=True, return_dict=True)
