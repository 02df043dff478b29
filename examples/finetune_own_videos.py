"""Fine-tunes a model on videos of one's own, listed in a LLaVA-style JSON file.

Each record names a video and holds a conversation about it (docs/data.md):

    {"video": "0.mp4", "conversations": [{"from": "human", "value": "<video>\\nWhat moves?"},
                                         {"from": "gpt", "value": "A red square."}]}

    python examples/finetune_own_videos.py             # a tiny model, a few generated videos
    python examples/finetune_own_videos.py --model runs/7b --data notes.json --steps 500
"""

import argparse
from pathlib import Path

import elva_jax
from elva_jax import testing
from elva_jax.config import schema

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", help="a run, or a folder or hub name of an exported model")
parser.add_argument("--data", help="the JSON file; its videos are relative to it")
parser.add_argument("--out", type=Path, default=Path("finetuned"))
parser.add_argument("--steps", type=int, default=4)
parser.add_argument("--learning-rate", type=float, default=1e-3)
parser.add_argument("--lora-rank", type=int, default=0, help="0: all parameters are trained")
args = parser.parse_args()

if args.model is None:
    args.model = str(args.out / "start")
    testing.tiny_model().save_pretrained(args.model)
model = elva_jax.load(args.model)
model.tokenizer.save_pretrained(args.out / "tokenizer")

# The model's own configuration, with one new stage that starts from its weights.
config = schema.to_config_dict(model.config)
config.init_from, config.tokenizer = args.model, str(args.out / "tokenizer")
config.log.update(every=1, tensorboard=False)
config.curriculum = ("mine",)
config.stages.mine = stage = schema.to_config_dict(model.config.stages[model.stage])
data = Path(args.data) if args.data else testing.write_dataset(args.out / "data")
stage.data.mixture = {"mine": schema.source(str(data), root=str(data.parent))}
stage.update(steps=args.steps, epochs=0.0, batch_size=2)
stage.loss.update(tube=0.0, contrastive=0.0)  # without a teacher
stage.optimizer.learning_rate = args.learning_rate
stage.optimizer.lora.rank = args.lora_rank

elva_jax.train(config, args.out / "run", progress=print)

tuned = elva_jax.load(args.out / "run")
video = data.parent / "0.mp4"
for name, each in (("before", model), ("after", tuned)):
    print(name, repr(each.answer(video, "What color is the square?", max_new_tokens=16)))
