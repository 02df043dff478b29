"""What real clients send, and what they get: OpenAI's client, curl, and bare HTTP."""

import json
import subprocess
import threading

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from elva_jax import Sampling
from elva_jax.video.layout import build_layout

QUESTION = "What moves?"


def text_of(reply):
    return reply.choices[0].message.content


def test_models(client):
    assert [model.id for model in client.models.list()] == ["elva"]
    assert client.models.retrieve("elva").owned_by == "elva_jax"
    with pytest.raises(openai.NotFoundError, match="no model other"):
        client.models.retrieve("other")


def test_an_answer_is_that_of_the_model(client, model, media, ask, inline):
    expected = model.answer(media / "red.mp4", QUESTION, max_new_tokens=8)
    visual = model.read_media(media / "red.mp4")
    tokens = build_layout(model.prompt_parts(QUESTION, [visual])).length
    for kind, url in (
        ("video_url", inline("red.mp4")),
        ("video_url", f"file://{media}/red.mp4"),
        ("video_url", media / "red.mp4"),
        ("input_video", "red.mp4"),
        ("video", "red.mp4"),
    ):
        reply = client.chat.completions.create(**ask((kind, url), QUESTION, max_tokens=8))
        assert text_of(reply) == expected, kind
        assert reply.choices[0].finish_reason in ("stop", "length")
        usage = reply.usage
        assert usage.completion_tokens <= 8
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
        assert usage.prompt_tokens == tokens
        assert reply.elva["frames"] == [4]
        assert reply.elva["merged_tokens"]
        assert reply.elva["seconds"]["total"] > 0


def test_a_stream_joins_to_the_answer(client, ask):
    body = ask(("video_url", "blue.mp4"), QUESTION, max_completion_tokens=8)
    whole = client.chat.completions.create(**body)
    for options in (None, {"include_usage": True}):
        more = {"stream_options": options} if options else {}
        chunks = list(client.chat.completions.create(**body, **more, stream=True))
        assert len({chunk.id for chunk in chunks}) == 1
        assert chunks[0].choices[0].delta.role == "assistant"
        pieces = [c.choices[0].delta.content for c in chunks if c.choices]
        assert "".join(filter(None, pieces)) == text_of(whole)
        ends = [c.choices[0].finish_reason for c in chunks if c.choices]
        assert ends[:-1] == [None] * (len(ends) - 1)
        assert ends[-1] == whole.choices[0].finish_reason
        assert [c.usage for c in chunks if not c.choices] == ([whole.usage] if options else [])


def test_settings_of_an_answer(client, model, media, ask):
    """Seeds, temperature, top_p, stop strings, frames, hybrid resolution and merging."""

    def said(**more):
        body = ask(("video_url", "red.mp4"), QUESTION, max_tokens=8, **more)
        return client.chat.completions.create(**body)

    def expected(**more):
        return model.answer(media / "red.mp4", QUESTION, max_new_tokens=8, **more)

    drawn = Sampling(temperature=0.9, top_p=0.8, seed=3)
    assert text_of(said(temperature=0.9, top_p=0.8, seed=3)) == expected(sampling=drawn)
    stop = expected()[2:4]
    short = said(stop=[stop])
    assert text_of(short) == expected(sampling=Sampling(stop=(stop,)))
    assert short.choices[0].finish_reason == "stop"
    assert text_of(said(extra_body={"merging": False})) == expected(merging=False)
    assert said(extra_body={"frames": 2}).elva["frames"] == [2]
    video = {"video": {"num_frames": 3}}
    assert said(extra_body={"media_io_kwargs": video}).elva["frames"] == [3]
    hybrid = {"high_frames": 1, "low_frames": 2, "high_edge": 32, "low_edge": 16}
    reply = said(extra_body={**hybrid, "policy": "ends"})
    assert reply.elva["frames"] == [3]


def test_merging_by_name(client, http, model, media, ask, profiles):
    """Answers, merged tokens, prefixes and metrics are those of the named settings."""
    visuals, kept = model.read_all(media / "red.mp4"), {}
    for given in (True, False, *profiles, *profiles):
        body = ask(("video_url", "red.mp4"), "Merge?", max_tokens=8, extra_body={"merging": given})
        reply = client.chat.completions.create(**body)
        merging = profiles.get(given, given)
        answer = model.answer(visuals, "Merge?", max_new_tokens=8, merging=merging)
        assert (text_of(reply), reply.elva["merging"]) == (answer, given)
        if given in profiles:  # no other test asks for them
            assert reply.elva["shared_prefix"] == (given in kept)
        kept[given] = tuple(reply.elva["merged_tokens"])
    assert len(set(kept.values())) == 4
    sample = f'elva_merging_answers_total{{merging="{given}"}} '
    text = http.get(http.base_url.join("/metrics")).text
    assert float(text.partition(sample)[2].partition("\n")[0]) >= 2


@pytest.mark.parametrize("given", ["other", "Half", "on", 1, 0.5, ["half"], {"ratio": 0.5}])
def test_other_merging_is_refused_with_the_known_names(client, ask, given):
    with pytest.raises(openai.BadRequestError, match="must be true, false or half, late, got"):
        client.chat.completions.create(**ask(QUESTION, extra_body={"merging": given}))


def test_a_conversation_with_a_system_turn(client, model, media, inline):
    content = [{"type": "video_url", "video_url": {"url": inline("red.mp4")}}]
    first = {"role": "user", "content": [*content, {"type": "text", "text": QUESTION}]}
    messages = [first]
    chat = model.chat(media / "red.mp4", max_new_tokens=6)
    for question in (QUESTION, "Where to?"):
        if question != QUESTION:
            messages.append({"role": "user", "content": question})
        reply = client.chat.completions.create(model="elva", messages=messages, max_tokens=6)
        assert text_of(reply) == chat.ask(question).text
        messages.append({"role": "assistant", "content": text_of(reply)})
    system = {"role": "system", "content": "Say yes."}
    other = client.chat.completions.create(model="elva", messages=[system, first], max_tokens=6)
    assert other.usage.prompt_tokens != model_tokens(client, first)


def model_tokens(client, message):
    reply = client.chat.completions.create(model="elva", messages=[message], max_tokens=1)
    return reply.usage.prompt_tokens


def test_many_clients_at_once_have_the_answers_of_one(client, model, media, ask):
    colors, questions = ("red", "blue"), (QUESTION, "Where to?", "And now?")
    cases = [(color, text) for color in colors for text in questions] * 2
    found = {}

    def one(number, color, text):
        body = ask(("video_url", f"{color}.mp4"), text, max_tokens=8)
        found[number] = text_of(client.chat.completions.create(**body))

    threads = [threading.Thread(target=one, args=(n, *case)) for n, case in enumerate(cases)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, (color, text) in enumerate(cases):
        assert found[number] == model.answer(media / f"{color}.mp4", text, max_new_tokens=8)


def test_curl_reads_a_stream(server, ask, tmp_path):
    body = tmp_path / "body.json"
    body.write_text(json.dumps(ask(QUESTION, max_tokens=4, stream=True)))
    line = ["curl", "-sN", f"{server.url}/chat/completions", "-d", f"@{body}"]
    line += ["-H", "Content-Type: application/json", "-H", "Authorization: Bearer sk-of-the-tests"]
    out = subprocess.check_output(line, timeout=60).decode()
    lines = out.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    for each in lines[:-2]:
        assert json.loads(each.removeprefix("data: "))["object"] == "chat.completion.chunk"


def test_metrics_and_health(http):
    root = str(http.base_url).removesuffix("/v1/")
    assert http.get(f"{root}/health", headers={"Authorization": ""}).json() == {"status": "ok"}
    text = http.get(f"{root}/metrics").text
    found = {family.name: family for family in text_string_to_metric_families(text)}
    answers = sum(sample.value for sample in found["elva_finished"].samples)
    assert answers > 0
    assert found["elva_media_hits"].samples[0].value > 0
    assert found["process_resident_memory_bytes"].samples[0].value > 0
    assert found["elva_completion_tokens"].samples[0].value > answers
    assert found["elva_first_token_seconds"].type == "histogram"


def test_unknown_keys_are_named_once(client, ask, caplog):
    caplog.set_level("INFO", "elva_jax")
    for _ in range(2):
        body = ask(QUESTION, max_tokens=1, extra_body={"top_k": 5, "user": "someone"})
        client.chat.completions.create(**body)
    assert [r.getMessage() for r in caplog.records if "top_k" in r.getMessage()] == [
        "requests have the key top_k, which means nothing here"
    ]
