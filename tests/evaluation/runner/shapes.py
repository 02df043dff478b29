"""A small benchmark over real clips, for tests and for the processes that they start.

Its questions are about videos, images, an excerpt, frames as files, nothing at all, a video that is
missing and one that is broken.
"""

import sys
from pathlib import Path

from PIL import Image

from elva_jax import testing
from elva_jax.data.example import Media
from elva_jax.evaluation.benchmarks.base import Benchmark, Grade, Metric, Question, Scores

COLORS = ("red", "green", "blue")
NAME = "shapes"


def write(root):
    """The files of the benchmark."""
    root.mkdir()
    for i in range(5):
        testing.write_video(root / f"{i}.mp4", testing.tiny_video(color=COLORS[i % 3], seed=i))
    for i, frame in enumerate(testing.tiny_video()):
        Image.fromarray(frame).save(root / f"{i}.png")
    (root / "broken.mp4").write_bytes(b"junk")
    return root


def read(folder):
    """The questions: two about each of the media, and an open one."""
    root = folder.path
    videos = [Media(str(root / f"{i}.mp4"), "video") for i in range(5)]
    images = [Media(str(root / f"{i}.png"), "image") for i in range(4)]
    files = Media(tuple(image.source for image in images[:3]), "video")
    missing = Media(str(root / "missing.mp4"), "video")
    broken = Media(str(root / "broken.mp4"), "video")
    excerpt = Media(videos[0].source, "video", start=0.25, end=0.75, frames=3)
    asked = [*((video,) for video in videos), (missing,), tuple(images), (files,), (excerpt,)]
    questions = [
        _question(f"{n}-{k}", media, k)
        for n, media in enumerate([*asked, (broken,), ()])
        for k in range(2)
    ]
    text = "Is <image> or <video> a word? How many squares are there?"
    questions.append(Question(key="open", media=tuple(images[:2]), prompt=text, text=text))
    return questions


def _question(key, media, k):
    text = f"{'Where to? ' * k}What color is the square?"
    prompt = "\n".join([text, "A. red", "B. green", "C. blue", "Answer with the letter."])
    return Question(key=key, media=media, prompt=prompt, text=text, options=COLORS, answer=k)


def grade(response):
    """The first letter."""
    picked = "ABC".find((response.text or "-")[:1])
    right = picked == response.question.answer
    status = "unparsed" if picked < 0 else "right" if right else "wrong"
    return Grade(response=response, parsed=picked, status=status, credit=float(right))


def score(grades):
    """The accuracy."""
    accuracy = 100 * sum(grade.credit for grade in grades) / len(grades)
    return Scores(main=Metric(name="accuracy", value=accuracy, count=len(grades)))


def small_model(seed=0):
    """It merges once and by ratio: videos of one size keep one length, so programs are shared."""
    merging = {"merge_policies": ("ratio",), "merge_thresholds": (0.0,), "merge_ratios": (0.5,)}
    return testing.tiny_model(seed, num_layers=2, merge_layers=(1,), **merging)


BENCHMARK = Benchmark(
    name=NAME,
    title="Shapes",
    kind="choice",
    reader=read,
    grade=grade,
    score=score,
    max_new_tokens=6,
)

if __name__ == "__main__":  # one process: root, output, index, count
    from elva_jax.evaluation.runner.run import evaluate_benchmarks
    from elva_jax.evaluation.runner.settings import BenchmarkConfig

    root, output, index, count = sys.argv[1:]
    evaluate_benchmarks(
        small_model(),
        [BENCHMARK],
        root,
        BenchmarkConfig(batch_size=4, answers=("generated",)),
        output=Path(output),
        process=(int(index), int(count)),
        progress=lambda *done: print(*done, flush=True),
    )
