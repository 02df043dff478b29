"""Measures a running `elva serve` by hand: python load.py --url http://HOST:PORT/v1 --seconds 300

Asks every question alone, then with 16 and with 32 clients at once; every answer under load must be
the one that was given alone. Prints a line of JSON per part; the status is the number of wrong or
failed answers, at most 100.
"""

import argparse
import base64
import json
import random
import tempfile
import threading
import time
from pathlib import Path

import httpx

from elva_jax import testing

QUESTIONS = ("What moves?", "What color is the square?", "Where does it go?", "Describe the video.")


def cases(videos):
    """Bodies of requests: every question about every one of some clips, greedy and drawn."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(videos):
            color = ("red", "green", "blue")[number % 3]
            frames = testing.tiny_video(8, 64, 64, color=color, seed=number)
            path = testing.write_video(Path(folder) / f"{number}.mp4", frames)
            data = base64.b64encode(path.read_bytes()).decode()
            video = {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{data}"}}
            for seed, text in enumerate(QUESTIONS):
                content = [video, {"type": "text", "text": text}]
                body = {"messages": [{"role": "user", "content": content}], "max_tokens": 32}
                drawn = {"temperature": 1.0, "top_p": 0.9, "seed": seed}
                found.append(body | (drawn if seed % 2 else {}))
    return found


def ask(client, body):
    """The answer to a streamed request, seconds to its first piece and to its end, and tokens."""
    body = body | {"stream": True, "stream_options": {"include_usage": True}}
    start, first, text, tokens = time.monotonic(), 0.0, "", 0
    with client.stream("POST", "chat/completions", json=body) as response:
        if response.status_code != 200:
            return f"status {response.status_code}", 0.0, 0.0, 0
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                return f"error {chunk['error']}", 0.0, 0.0, 0
            for choice in chunk["choices"]:
                piece = choice["delta"].get("content") or ""
                first = first or (time.monotonic() - start if piece else 0.0)
                text += piece
            tokens = (chunk.get("usage") or {}).get("completion_tokens", tokens)
    return text, first, time.monotonic() - start, tokens


def metric(url, name):
    """The value of one metric without labels."""
    text = httpx.get(f"{url.removesuffix('/v1')}/metrics").text
    found = [line.split()[1] for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(found[0]) if found else 0.0


def percentiles(values):
    """Median, 95th and 99th percentile, and maximum."""
    ordered = sorted(values) or [0.0]
    marks = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {
        k: round(ordered[min(int(v * len(ordered)), len(ordered) - 1)], 3) for k, v in marks.items()
    }


def run(url, headers, bodies, expected, clients, seconds):
    """A number of clients that ask at random for some time."""
    results, wrong, memory = [], [], []
    end = time.monotonic() + seconds

    def one(seed):
        rng = random.Random(seed)
        with httpx.Client(base_url=url, headers=headers, timeout=300) as client:
            while time.monotonic() < end:
                number = rng.randrange(len(bodies))
                text, *numbers = ask(client, bodies[number])
                results.append(numbers)
                if text != expected[number]:
                    wrong.append((number, text, expected[number]))

    threads = [threading.Thread(target=one, args=(seed,)) for seed in range(clients)]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    while time.monotonic() < end:
        time.sleep(min(10.0, max(end - time.monotonic(), 0.0)))
        memory.append(round(metric(url, "process_resident_memory_bytes") / 2**20))
    for thread in threads:
        thread.join()
    took = time.monotonic() - start
    for case in wrong[:3]:
        print("WRONG", case)
    report = {
        "clients": clients,
        "seconds": round(took, 1),
        "answers": len(results),
        "wrong": len(wrong),
        "tokens_per_second": round(sum(tokens for *_, tokens in results) / took, 1),
        "first_token_seconds": percentiles([first for first, _, _ in results]),
        "answer_seconds": percentiles([last for _, last, _ in results]),
        "resident_mib": memory,
        "compilations": metric(url, "elva_compilations_total"),
    }
    print(json.dumps(report), flush=True)
    return len(wrong)


def main():
    """Runs all parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--api-key", default="")
    parser.add_argument("--seconds", type=float, default=300.0, help="of the last part")
    parser.add_argument("--short", type=float, default=30.0, help="seconds of the others")
    parser.add_argument("--videos", type=int, default=12)
    args = parser.parse_args()
    headers = {"Authorization": f"Bearer {args.api_key}"} if args.api_key else {}
    bodies = cases(args.videos)
    with httpx.Client(base_url=args.url, headers=headers, timeout=300) as client:
        expected = [ask(client, body)[0] for body in bodies]
    failed = [text for text in expected if text.startswith(("status ", "error "))]
    print(json.dumps({"questions": len(bodies), "different": len({*expected}), "failed": failed}))
    wrong = len(failed)
    for clients, seconds in ((1, args.short), (16, args.short), (32, args.seconds)):
        wrong += run(args.url, headers, bodies, expected, clients, seconds)
    return min(wrong, 100)


if __name__ == "__main__":
    raise SystemExit(main())
