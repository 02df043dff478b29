"""Exports a model as a Hugging Face folder, which transformers loads without JAX.

    python examples/export_to_hf.py --out exported/tiny
    python examples/export_to_hf.py --model runs/tiny --out exported/tiny --dtype bfloat16

In PyTorch, without this package (docs/weights.md):

    model = AutoModelForCausalLM.from_pretrained("exported/tiny", trust_remote_code=True)
    processor = AutoProcessor.from_pretrained("exported/tiny", trust_remote_code=True)
"""

import argparse

import elva_jax
from elva_jax import testing

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", help="a run, or a folder or hub name of an exported model")
parser.add_argument("--out", default="exported", help="a folder that does not exist yet")
parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
args = parser.parse_args()

model = elva_jax.load(args.model) if args.model else testing.tiny_model()
model.save_pretrained(args.out, dtype=args.dtype)

again = elva_jax.load(args.out)
video, question = testing.tiny_video(), "What moves?"
answers = [each.answer(video, question, max_new_tokens=16) for each in (model, again)]
print(f"{args.out}: before {answers[0]!r}, after {answers[1]!r}")
