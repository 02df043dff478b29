"""Asks questions about a video: one answer as it comes, several together, and a multiple choice.

python examples/ask_video.py                       # a tiny model with random weights
python examples/ask_video.py --model runs/tiny --video clip.mp4 --question "What happens?"
"""

import argparse

import elva_jax
from elva_jax import testing

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", help="a run, or a folder or hub name of an exported model")
parser.add_argument("--video", help="a video, an image, or a folder of frames")
parser.add_argument("--question", default="What color is the square?")
parser.add_argument("--options", nargs="*", default=["red", "green", "blue"])
args = parser.parse_args()

model = elva_jax.load(args.model) if args.model else testing.tiny_model()
video = args.video or testing.tiny_video()

print("Answer:", end=" ")
for piece in model.stream(video, args.question, max_new_tokens=16):
    print(piece, end="", flush=True)
print()

requests = [elva_jax.Request(video, args.question), elva_jax.Request(video, "What moves?")]
for request, answer in zip(requests, model.generate(requests, max_new_tokens=16), strict=True):
    print(f"{request.prompt} {answer.text!r}")

scores = model.score(video, args.question, args.options)
for option, score in sorted(
    zip(args.options, scores, strict=True), key=lambda pair: -pair[1].total
):
    print(f"{option:>8}  log-likelihood {score.total:.2f}")

chat = model.chat(video, max_new_tokens=16, sampling=elva_jax.Sampling(temperature=0.7, top_p=0.9))
for question in (args.question, "And what else?"):
    print(f"{question} {chat.ask(question).text!r}")
