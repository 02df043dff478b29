"""LoRA: trains small factors beside the decoder's matrices, and shows what has changed.

The factors are added to the matrices when the run is loaded, so that nothing else has to know of
them. `elva train` does the same with --config.stages.NAME.optimizer.lora.rank=8.

    python examples/lora.py
    python examples/lora.py --model runs/7b --data notes.json --steps 500 --rank 16
"""

import argparse
import runpy
import sys
from pathlib import Path

import jax
import numpy as np

import elva_jax

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--rank", type=int, default=4, help="inner width of the factors")
parser.add_argument("--out", type=Path, default=Path("adapted"))
args, others = parser.parse_known_args()

# The same script as for a full fine-tuning: only the rank makes the difference.
script = Path(__file__).with_name("finetune_own_videos.py")
sys.argv = [str(script), "--out", str(args.out), "--lora-rank", str(args.rank), *others]
result = runpy.run_path(str(script), run_name="__main__")

before, after = result["model"].params, elva_jax.load(args.out / "run").params
changes = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, after)
for path, change in jax.tree_util.tree_leaves_with_path(changes):
    print(f"{jax.tree_util.keystr(path, simple=True, separator='/'):>48}  {change:.2g}")
