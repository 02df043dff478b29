"""MERV (arXiv 2501.01426): `configs/merv.py:recipe=frozen|full,llm=NAME`.

Four frozen encoders see every video, and one learned query weighs them. Both recipes train
projectors, fusion and decoder, `frozen` on questions alone, `full` on captions and then on
questions; the second stage continues from everything that the first one has trained.

The decoder is llama2_7b, as in the paper, qwen2_1_5b or qwen2_7b, whose folder is
checkpoints/NAME. With llm=tiny, miniature encoders and a random decoder learn moving shapes on a
laptop: `elva data build moving_shapes/easy` has their data, and nothing is downloaded.
"""

from pathlib import Path

from elva_jax.config import mixtures, schema
from elva_jax.config.load import choose, parse_arg, sibling

LLAMA2_7B = dict(
    hidden_size=4096,
    intermediate_size=11_008,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    vocab_size=32_064,  # 32,000 and rows up to a multiple of 64, as in the published checkpoints
    rope_theta=10_000.0,
    rms_norm_eps=1e-5,
    max_position=4096,
    tie_embeddings=False,
    attention_bias=False,
)
# Folders of the decoder's weights and tokenizer.
LLMS = {
    "llama2_7b": "checkpoints/llama-2-7b-hf",
    "qwen2_1_5b": "checkpoints/qwen2-1.5b-instruct",
    "qwen2_7b": "checkpoints/qwen2-7b-instruct",
}
# In MERV's order; configs/towers.py has their sizes.
ENCODERS = ("languagebind", "dinov2", "vivit", "siglip")
# Miniatures that see 4 frames: the first three have random weights, the last is trained here.
TINY = dict(hidden_size=64, intermediate_size=192, num_layers=3, num_heads=4, patch_size=8)
TINY_ENCODERS = {
    "languagebind": dict(kind="languagebind", num_frames=2, activation="gelu"),
    "dinov2": dict(kind="dinov2", num_registers=2, activation="gelu"),
    "vivit": dict(kind="vivit", num_frames=4, tubelet=2, features="last"),
    "siglip": dict(kind="siglip", init_from=""),
}
TINY_STEPS = dict(teacher=200, align=500, finetune=3000)
TOKENS = 1024  # visual tokens of a video or an image


def get_config(arg: str = "") -> schema.ConfigDict:
    """The run of a recipe and a decoder."""
    args = parse_arg(arg, recipe="frozen", llm="llama2_7b")
    recipe = choose("recipe", args["recipe"], ("frozen", "full"))
    llm = choose("llm", args["llm"], (*LLMS, "tiny"))
    c = schema.base()
    c.name = f"merv-{recipe}-{llm}"
    c.curriculum = ("align", "finetune") if recipe == "full" else ("finetune",)
    c.model.patch_embed = "merv"
    c.model.merv.encoders = ENCODERS
    if llm == "tiny":
        return tiny(c)
    decoder(c, llm)
    for name in ENCODERS:
        c.encoders[name] = encoder(name)
    form = "llama2_base" if llm == "llama2_7b" else "chatml"
    c.stages.align = align_stage(form)
    c.stages.finetune = finetune_stage(form)
    return c


def encoder(name: str) -> schema.ConfigDict:
    """A tower with the sizes of its published weights; its compute type is the decoder's."""
    towers = sibling(__file__, "towers")
    t = schema.tower()
    if name == "siglip":
        t.update(init_from="checkpoints/siglip-base-patch16-224", image_size=224, **towers.B16)
        # MERV's code has this tower with the exact GELU, Hugging Face's configuration with tanh.
        t.activation = "gelu"
    else:
        t.update(towers.REAL[name])
    return t


def decoder(c: schema.ConfigDict, llm: str) -> None:
    """Fills in the decoder, and where its weights and tokenizer are."""
    elva = sibling(__file__, "elva")
    c.model.update(LLAMA2_7B if llm == "llama2_7b" else elva.QWEN2[llm.removeprefix("qwen2_")])
    c.model.remat = "full"
    c.init_from = c.tokenizer = LLMS[llm]
    c.mesh.fsdp = -1
    c.mesh.data = 1
    c.seed = 7


def align_stage(form: str) -> schema.ConfigDict:
    """The first stage of the recipe `full`: captions of images and videos, without questions."""
    s = _stage(form, "merv_align")
    s.batch_size = 256
    s.data.captions = True
    s.optimizer.learning_rate = 1e-4
    return s


def finetune_stage(form: str) -> schema.ConfigDict:
    """The last stage of both recipes: questions about images and videos."""
    s = _stage(form, "merv_finetune")
    s.batch_size = 128
    s.optimizer.learning_rate = 2e-5
    s.optimizer.weight_decay = 0.1
    return s


def _stage(form: str, mixture: str) -> schema.ConfigDict:
    s = schema.stage()
    s.epochs = 1.0
    s.data.mixture = mixtures.from_yaml(Path(__file__).parent / "data" / f"{mixture}.yaml")
    s.data.prompt_format = form
    s.data.system_prompt = ""
    # One example per row, so that a batch has the paper's number of examples; up to 2,048 tokens
    # of text. data.pack=True with more max_patches fills rows with several.
    s.data.pack = False
    s.data.max_turns = 64
    s.data.seq_len = TOKENS + 2048
    s.data.max_patches = TOKENS
    s.data.max_frames = 16
    s.optimizer.warmup_ratio = 0.03
    return frozen_encoders(s)


def frozen_encoders(s: schema.ConfigDict) -> schema.ConfigDict:
    """Trains all but the encoders, with PyTorch's rule of what weights decay."""
    s.optimizer.freeze = ("^elva/patch_embed/tower_",)
    s.optimizer.frozen_dtype = "bfloat16"
    s.optimizer.decay_on = "matrices"
    return s


def tiny(c: schema.ConfigDict) -> schema.ConfigDict:
    """The tiny decoder of configs/tiny.py, miniature encoders and moving shapes."""
    base = sibling(__file__, "tiny")
    base.model(c.model)
    c.model.update(merge_layers=(), merge_policies=(), merge_thresholds=(), merge_ratios=())
    c.model.merv.update(num_frames=base.FRAMES, slots=2, grid=4, fusion_width=64)
    base.teacher(c.teacher)
    for name, values in TINY_ENCODERS.items():
        c.encoders[name] = schema.tower()
        c.encoders[name].update(dict(image_size=64, init_from="random", **TINY) | values)
    c.curriculum = ("teacher", *c.curriculum)
    c.stages.teacher = base.teacher_stage(TINY_STEPS["teacher"])
    for name in ("align", "finetune"):
        c.stages[name] = frozen_encoders(base.video_stage(TINY_STEPS[name]))
        data = c.stages[name].data
        data.update(seq_len=288, max_patches=64, max_frames=4)
    c.stages.align.data.captions = True
    for source in c.stages.align.data.mixture.values():
        source.tasks = ("caption",)
    return c
