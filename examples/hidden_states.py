"""Draws where a video stays the same, as the model sees it: similarity maps of neighboring frames.

For each layer and each pair of frames, a map shows the cosine between the hidden states of tokens
at the same position of the patch grid. These are the similarities by which tokens merge (paper,
section 3.2).

    python examples/hidden_states.py --out similarity.png
    python examples/hidden_states.py --model runs/tiny --video clip.mp4 --layers 0 4 8
"""

import argparse

import matplotlib.pyplot as plt
import numpy as np

import elva_jax
from elva_jax import testing

PATCH = 3  # of TokenLayout.kind

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", help="a run, or a folder or hub name of an exported model")
parser.add_argument("--video", help="a video, or a folder of frames")
parser.add_argument("--question", default="What moves?")
parser.add_argument("--layers", nargs="*", type=int, help="numbers of layers (default: all)")
parser.add_argument("--out", default="similarity.png")
args = parser.parse_args()

model = elva_jax.load(args.model) if args.model else testing.tiny_model()
video = args.video or testing.tiny_video(5, 64, 64)


def similarity_maps(states: np.ndarray, layout: elva_jax.TokenLayout) -> np.ndarray:
    """Cosines [T - 1, rows, columns] of frames of one grid; `states` is [S, D]."""
    patch = layout.kind == PATCH
    rows, columns = layout.cell[patch][0, 2:]
    grid = states[patch].reshape(-1, rows, columns, states.shape[-1])
    grid = grid / np.linalg.norm(grid, axis=-1, keepdims=True)
    return (grid[:-1] * grid[1:]).sum(-1)


# Without merging every layer has all tokens; with it, we learn what would have merged.
hidden = model.hidden_states(video, args.question, layers=args.layers, merging=False)
maps = {layer: similarity_maps(x, hidden.layout) for layer, x in hidden.states.items()}
for block in model.hidden_states(video, args.question, layers=[]).blocks:
    kept = block.layout.length / hidden.layout.length
    print(f"layers {block.start} to {block.stop}: {block.layout.length} tokens ({kept:.0%})")

pairs = len(next(iter(maps.values())))
figure, axes = plt.subplots(
    len(maps), pairs, squeeze=False, figsize=(1.6 * pairs + 1, 1.6 * len(maps)), layout="compressed"
)
for row, (layer, cosines) in zip(axes, maps.items(), strict=True):
    row[0].set_ylabel(f"layer {layer}")
    for axis, cosine in zip(row, cosines, strict=True):
        image = axis.imshow(cosine, vmin=-1, vmax=1, cmap="RdBu")
        axis.set(xticks=[], yticks=[])
for t, axis in enumerate(axes[0]):
    axis.set_title(f"{t} → {t + 1}")
figure.colorbar(image, ax=axes, label="cosine")
figure.savefig(args.out, dpi=120)
print(args.out)
