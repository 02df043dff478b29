"""Merges tokens by a rule of one's own, and compares it with the model's.

python examples/custom_merging.py
python examples/custom_merging.py --model runs/tiny --video clip.mp4
"""

import argparse

import elva_jax
from elva_jax import MergeLayer, Merging, testing

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", help="a run, or a folder or hub name of an exported model")
parser.add_argument("--video", help="a video, or a folder of frames")
parser.add_argument("--question", default="What moves?")
args = parser.parse_args()


def pairs_of_frames(neighbors, rule):
    """Merges frame 0 with 1, 2 with 3 and so on, where the two are similar enough.

    `neighbors` describes every token of a sequence and its successor, the next token at the same
    position of the patch grid. The result says which tokens merge into their successor, bool [S].
    """
    first_of_pair = neighbors.place % 2 == 0
    return first_of_pair & (neighbors.similarity > rule.threshold)


model = elva_jax.load(args.model) if args.model else testing.tiny_model()
video = args.video or testing.tiny_video(6)
rules = {
    "none": False,
    "the model's": True,
    "pairs of frames": Merging((MergeLayer(1, pairs_of_frames, threshold=0.6),)),
    "pairs, whatever they show": Merging((MergeLayer(1, pairs_of_frames, threshold=-1.0),)),
}
for name, merging in rules.items():
    hidden = model.hidden_states(video, args.question, layers=[], merging=merging)
    tokens = " → ".join(str(block.layout.length) for block in hidden.blocks)
    answer = model.answer(video, args.question, merging=merging, max_new_tokens=16)
    print(f"{name:>26}: {tokens} tokens, {answer!r}")
