"""The whole configuration schema: every key a run may set, with its default and its meaning.

A config file's `get_config(arg)` starts from `base()`, fills in the model, and adds one `stage()` per entry of its curriculum.
"""

from __future__ import annotations

from ml_collections import ConfigDict


def base() -> ConfigDict:
    """What all stages of a run share."""
    c = ConfigDict()
    c.name = "elva"  # name of the run, used in titles and logs
    c.seed = 0  # seeds initialisation, data order and every random choice
    c.data_dir = ".data"  # where built data sets live
    c.data_root = ""  # folder that the files of sources and their media folders are relative to; "": the working directory
    c.tokenizer = ""  # folder of a transformers tokenizer; "": the one built with the data set, <data_dir>/tokenizer
    c.init_from = ""  # run, converted checkpoint, Hugging Face folder or hub name that the first stage starts from; "": random
    c.curriculum = ()  # names of the stages to run, in order
    c.model = model()
    c.teacher = teacher()
    c.mesh = mesh()
    c.checkpoint = checkpoint()
    c.log = log()
    c.stages = ConfigDict()  # stage name -> stage()
    return c


def model() -> ConfigDict:
    """The ELVA model; Qwen2-1.5B's numbers by default."""
    c = ConfigDict()
    c.vocab_size = 151_936  # rows of the embedding table; at least the tokenizer's size
    c.hidden_size = 1536  # D, the decoder's width
    c.intermediate_size = 8960  # inner width of SwiGLU
    c.num_layers = 28  # decoder layers
    c.num_heads = 12  # query heads
    c.num_kv_heads = 2  # key and value heads
    c.head_dim = 128  # width of a head
    c.rope_theta = 1_000_000.0  # RoPE base
    c.rope_scaling = "default"  # default | linear | dynamic | yarn
    c.rope_factor = 1.0  # how many times the trained context RoPE is stretched
    c.rope_original_max_position = 32_768  # trained context length, for RoPE scaling
    c.rms_norm_eps = 1e-6  # RMSNorm's epsilon
    c.tie_embeddings = True  # whether the head is the embedding table
    c.max_position = 32_768  # longest sequence
    c.attention_bias = True  # biases on q, k and v
    c.patch_size = 28  # pixels of a patch's side; with patch_embed = encoder, teacher.patch_size
    c.patch_width = 1024  # E, width of the patch embedding
    c.patch_embed = "video"  # video | naive (Table 3) | encoder (baseline: teacher's tower and an MLP; frames squashed to its square)
    c.patch_heads = 1  # heads of the patch embedding's cross-attention
    c.dtype = "bfloat16"  # compute type: float32 | bfloat16; parameters stay float32
    c.remat = (
        "none"  # none | full | dots | dots_no_batch | names: what the backward pass recomputes
    )
    c.attention = "auto"  # auto | xla | cudnn
    c.merge_layers = ()  # decoder layers before which tokens merge, increasing
    c.merge_policies = ()  # per merging layer: threshold | ratio | both | pool (runs cut by count, whatever the content)
    c.merge_thresholds = ()  # per merging layer: cosine above which neighbours merge
    c.merge_ratios = ()  # per merging layer: share of the entering mergeable tokens that stays; unused by threshold
    c.merge_lines = False  # whether <LINE> tokens merge along their row index
    return c


def teacher() -> ConfigDict:
    """The frozen vision tower of the guidance losses (paper, section 3.3)."""
    c = ConfigDict()
    c.kind = (
        "siglip"  # siglip | eva_clip (EVA01-CLIP, such as EVA-CLIP-g) | eva02_clip (EVA02-CLIP)
    )
    c.init_from = ""  # run, converted checkpoint, Hugging Face folder or hub name with its weights; "": this run's stage named "teacher"
    c.image_size = 384  # pixels of its square input
    c.patch_size = 14  # pixels of its patches
    c.hidden_size = 1152  # width of its features
    c.intermediate_size = 4304  # inner width of its MLPs
    c.num_layers = 27  # vision layers
    c.num_heads = 16  # heads
    c.text_layers = 0  # layers of the text tower, needed only to train a teacher
    c.text_length = 64  # tokens of its captions
    c.dtype = (
        "float32"  # compute type while it guides: float32 | bfloat16; its parameters stay float32
    )
    return c


def mesh() -> ConfigDict:
    """The device mesh; one axis may be -1: all remaining devices."""
    c = ConfigDict()
    c.data = -1  # batch parallel, parameters replicated
    c.fsdp = 1  # batch parallel, parameters and optimiser sharded
    c.context = 1  # sequences sharded, for long ones; needs model.attention xla (auto takes it), context x tensor within a process
    c.tensor = 1  # heads and inner widths sharded
    c.zero = 3  # 3 | 2: weights over fsdp gathered layer by layer, or once a step; gradients and optimiser are sharded in both
    return c


def checkpoint() -> ConfigDict:
    """When Orbax saves."""
    c = ConfigDict()
    c.every = 500  # steps between saves; a stage's last step is always saved
    c.keep = 2  # newest of them kept in each stage; 0: all
    c.minutes = 0.0  # minutes between further saves, of which only the newest is kept until the next save; 0: none
    c.on_error = "stop"  # stop | continue: what a save that fails (disk full) does to the run; the end of a stage always stops
    c.mirror = ""  # folder on other storage to which saved steps are copied, and from which an empty workdir is filled again; "": none
    return c


def log() -> ConfigDict:
    """What is reported while training."""
    c = ConfigDict()
    c.every = 10  # steps between reports
    c.tensorboard = True  # whether to write TensorBoard events beside metrics.jsonl
    c.wandb = ""  # project of Weights & Biases to write to as well; needs: pip install wandb; WANDB_MODE=offline works
    c.peak_tflops = 0.0  # what one device can do, for MFU; 0: bfloat16's peak of an A100, H100 or H200, no MFU on others
    c.max_bad_steps = 10  # non-finite losses in a row before the run stops
    return c


def stage() -> ConfigDict:
    """One stage of the curriculum."""
    c = ConfigDict()
    c.kind = "elva"  # elva | teacher (trains the vision tower with the sigmoid loss)
    c.steps = 0  # optimiser steps; 0: derived from epochs
    c.epochs = 0.0  # passes over the mixture, where steps is 0
    c.batch_size = 256  # sequences (packed rows) a step, over all devices
    c.merging = False  # whether tokens merge inside the decoder
    c.merge_buckets = ()  # per merging layer: static token count behind it; 0: no compaction there
    c.data = data()
    c.loss = loss()
    c.optimizer = optimizer()
    return c


def data() -> ConfigDict:
    """What a stage reads and how it is laid out."""
    c = ConfigDict()
    c.mixture = ConfigDict()  # name -> source()
    c.temperature = 0.0  # T > 0: shares are weight * (epochs * records)^(1/T), as T5 mixes (1: by size, large: even); 0: the weights alone
    c.num_frames = 1  # most frames sampled from a video, uniform in time
    c.fps = 0.0  # frames a second instead, up to num_frames; 0: spread num_frames over the video
    c.longest_edge = 448  # pixels; longer edges are scaled down to it
    c.upscale = False  # whether smaller frames are scaled up to longest_edge
    c.num_low_frames = 0  # hybrid resolution as an augmentation: so many more frames, smaller ones, beside num_frames; 0: off
    c.low_longest_edge = 336  # pixels; longer edges of these are scaled down to it
    c.hybrid_policy = "interleave"  # interleave | ends | scene (those that change most): which frames are the large ones
    c.hybrid_probability = 0.5  # share of the videos that are read so; the others and images are read as if it were off
    c.seq_len = 4096  # S, tokens of a packed sequence
    c.max_patches = 4096  # N, patches of a packed sequence
    c.max_frames = 64  # frames of a packed sequence
    c.pack = True  # whether several short examples share a sequence
    c.max_turns = 8  # most question turns about one video
    c.system_prompt = "You are a helpful assistant."  # system turn of the chat template; "": none
    c.workers = 0  # decoding processes; 0: a thread of the main process
    c.max_bad_fraction = 0.05  # share of unreadable records above which the run stops
    c.time_limit = 60.0  # seconds after which an example that is still being read counts as unreadable; 0: none
    return c


def source(
    name: str,
    split: str = "",
    weight: float = 1.0,
    tasks: tuple[str, ...] = (),
    root: str = "",
    sampling: str = "all",
    epochs: float = 1.0,
) -> ConfigDict:
    """One entry of a mixture."""
    c = ConfigDict()
    c.name = name  # a TFDS name such as moving_shapes/easy; a file: .json, .jsonl (LLaVA), .csv (WebVid), .tar (WebDataset); hf:FOLDER
    c.split = split  # split of a TFDS or Hugging Face data set; files have none
    c.weight = weight  # share of the examples drawn from it, beside the other weights
    c.tasks = (
        tasks  # kinds of turns wanted of a TFDS data set: object | caption | open | choice; (): all
    )
    c.root = root  # folder that the media paths of a .json, .jsonl, .csv or hf:FOLDER are relative to; "": the file's own
    c.sampling = sampling  # all | first:N | end:N | random:N: which records are used; N is a number of them or a share such as 10%
    c.epochs = epochs  # how often they come in one pass over the mixture, where data.temperature makes shares of it
    return c


def loss() -> ConfigDict:
    """Weights and options of the loss terms (paper, section 3.3)."""
    c = ConfigDict()
    c.generation = 1.0  # next-token cross-entropy on answers
    c.tube = 0.0  # tube-wise alignment with the teacher
    c.contrastive = 0.0  # frame-wise contrastive loss against the teacher
    c.tube_reduction = "sum"  # sum | mean over channels of the squared differences
    c.tube_temporal = "mean"  # mean: tubes averaged over time; none: every frame's cell apart
    c.temperature = 0.07  # initial temperature of the contrastive loss, then learned
    return c


def optimizer() -> ConfigDict:
    """The optimiser."""
    c = ConfigDict()
    c.name = "adamw"  # adamw | muon (matrices by Muon, the rest by AdamW)
    c.learning_rate = 4e-5  # peak
    c.muon_learning_rate = 0.02  # peak for Muon's matrices
    c.warmup_ratio = 0.03  # share of the steps with a linear rise
    c.final_ratio = 0.0  # share of the peak left at the end of the cosine
    c.b1 = 0.9  # Adam's first decay
    c.b2 = 0.999  # Adam's second decay
    c.eps = 1e-8  # Adam's epsilon
    c.weight_decay = 0.0  # decoupled weight decay
    c.clip_norm = 1.0  # global gradient norm; 0: no clipping
    c.accumulate = 1  # micro-batches whose gradients are averaged into one step
    c.freeze = ()  # regular expressions of parameter paths that stay as they are
    c.frozen_dtype = "float32"  # float32 | bfloat16: type in which frozen parameters are kept
    c.lora = lora()
    return c


def lora() -> ConfigDict:
    """Small factors that are trained beside the decoder's matrices; all else is frozen then."""
    c = ConfigDict()
    c.rank = 0  # inner width of the factors; 0: none
    c.alpha = 16.0  # their product counts alpha / rank times
    c.targets = (
        "_proj$",
    )  # regular expressions of the decoder's projections that have them: q_proj … o_proj, gate_proj, up_proj, …
    c.also = ()  # regular expressions of paths of further parameters that are trained, whole, such as patch_embed
    return c
