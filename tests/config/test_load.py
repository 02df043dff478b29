"""Tests of loading configs, and of the messages when a config is rejected."""

import re

import pytest

from elva_jax.config.load import load, parse_arg
from elva_jax.errors import ConfigError

SOURCE = "c.stages.a.data.mixture.x = schema.source({})"


def test_overrides_change_values_of_the_right_type(config_dir):
    c = load(
        f"{config_dir}/tiny.py",
        [
            "--config.seed=7",
            "--config.stages.video.optimizer.learning_rate=1",
            "--config.curriculum=('teacher', 'image')",
        ],
    )
    assert c.seed == 7
    assert c.stages.video.optimizer.learning_rate == 1.0
    assert isinstance(c.stages.video.optimizer.learning_rate, float)
    assert c.curriculum == ("teacher", "image")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.sed=3", r"sed: .*did you mean seed\?"),
        ("--config.stages.image.loss.tbe=3", r"stages\.image\.loss\.tbe: .*did you mean tube\?"),
        ("--config.stages.imag.steps=3", r"stages\.imag\.steps: .*did you mean image\?"),
        ("--config.seed.x=3", r"seed\.x: a single value has no key 'x'"),
        ("--config.seed=abc", r"config\.seed=abc"),
        ("--config.stages.image.steps=2.5", r"stages\.image\.steps=2\.5"),
        ("--config.model=4", r"config\.model=4.*not a dict"),
        ("--confg.seed=1", r"unknown option --confg\.seed"),
        ("stray", r"'stray' is not an option"),
        ("--config.model.dtype=bfloat", r"model\.dtype: .*did you mean bfloat16\?"),
        ("--config.mesh.zero=1", r"mesh\.zero: must be 2 or 3, got 1"),
        (
            "--config.checkpoint.on_error=continu",
            r"checkpoint\.on_error: .*did you mean continue\?",
        ),
        ("--config.checkpoint.every=0", r"checkpoint\.every: must be at least 1, got 0"),
        ("--config.checkpoint.minutes=-1", r"checkpoint\.minutes: cannot be negative"),
        ("--config.model.num_kv_heads=3", r"model\.num_kv_heads: 3 does not divide num_heads"),
        ("--config.model.merge_layers=(2, 1)", r"model\.merge_layers: must increase"),
        ("--config.model.merge_layers=(1,)", r"model\.merge_policies: needs one entry for each"),
        ("--config.model.merge_layers=(1, 9)", r"model\.merge_layers: 9 is not a layer"),
        (
            "--config.model.merge_policies=('threshold', 'rato')",
            r"model\.merge_policies: .*did you mean ratio\?",
        ),
        ("--config.curriculum=('image', 'sft')", r"stages\.image\.loss\.tube: needs a teacher"),
        (
            "--config.curriculum=('imag',)",
            r"curriculum: no stage named 'imag'.*did you mean image\?",
        ),
        ("--config.stages.sft.loss.tube=1.0", r"stages\.sft\.loss\.tube: .*merging"),
        ("--config.stages.sft.data.captions=True", r"stages\.sft\.data\.captions: .*merging"),
        (
            "--config.stages.sft.merge_buckets=(100,)",
            r"stages\.sft\.merge_buckets: needs one entry",
        ),
        (
            "--config.stages.sft.merge_buckets=(9999, 100)",
            r"stages\.sft\.merge_buckets: must not grow",
        ),
        ("--config.stages.video.steps=0", r"stages\.video\.steps: set steps, or epochs"),
        (
            "--config.stages.video.optimizer.accumulate=3",
            r"stages\.video\.optimizer\.accumulate: 3 does not divide",
        ),
        (
            "--config.stages.video.data.longest_edge=8",
            r"stages\.video\.data\.longest_edge: 8 px is less than one patch",
        ),
        ("--config.teacher.text_layers=0", r"teacher\.text_layers: stage teacher"),
        (
            "--config.stages.sft.data.hybrid_policy=scenes",
            r"stages\.sft\.data\.hybrid_policy: .*did you mean scene\?",
        ),
        (
            "--config.stages.sft.data.hybrid_probability=1.5",
            r"data\.hybrid_probability: must be in \[0, 1\].*did you mean 1\.0\?",
        ),
        (
            "--config.stages.sft.data.num_low_frames=-1",
            r"data\.num_low_frames: cannot be negative, got -1",
        ),
        (
            "--config.stages.sft.data.num_low_frames=2",
            r"data\.low_longest_edge: 336 px .* one patch of 16 px and longest_edge = 48;"
            r" half is 16",
        ),
        (
            "--config.stages.teacher.data.num_low_frames=2",
            r"stages\.teacher\.data\.num_low_frames: a teacher sees frames of one size",
        ),
    ],
)
def test_mistakes_are_refused_by_name(config_dir, override, message):
    with pytest.raises(ConfigError, match=message) as error:
        load(f"{config_dir}/tiny.py", [override])
    assert "\n" not in str(error.value)


def test_a_ramp_of_rope_that_falls_is_refused(config_dir):
    overrides = ["--config.model.rope_scaling=llama3", "--config.model.rope_low_freq_factor=4"]
    with pytest.raises(ConfigError, match=r"rope_high_freq_factor: 4\.0 must be above"):
        load(f"{config_dir}/tiny.py", overrides)


@pytest.mark.parametrize(
    "key", ["seed", "stages.image.steps", "stages.image.optimizer.learning_rate"]
)
@pytest.mark.parametrize("text", ["١", "１２", "²", "1\u00a0"])
@pytest.mark.parametrize("words", ["--config.{}={}", "--config.{} {}"])
def test_digits_of_other_scripts_are_no_numbers(config_dir, key, text, words):
    overrides = words.format(key, "X").replace("X", text).split(" ")
    with pytest.raises(ConfigError, match=f"--config.{key}: '.*' is not a number"):
        load(str(config_dir / "tiny.py"), overrides)


def test_hybrid_frames_must_fit_a_row(config_dir):
    """The tiny sft stage has four frames per video and up to six per row."""
    words = [
        "--config.stages.sft.data.low_longest_edge=16",
        "--config.stages.sft.data.num_low_frames=",
    ]
    assert (
        load(f"{config_dir}/tiny.py", [words[0], words[1] + "2"]).stages.sft.data.num_low_frames
        == 2
    )
    with pytest.raises(
        ConfigError,
        match=r"stages\.sft\.data\.num_low_frames: 4 \+ 3 frames .* max_frames = 6;"
        r" set that to 7 or more",
    ):
        load(f"{config_dir}/tiny.py", [words[0], words[1] + "3"])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("c.sed = 1", r"sed: no such key; did you mean seed\?"),
        ("c.seed = 'x'", r"mine\.py: .*TypeError.*'seed'"),
        ("c.stages.b = 3", r"stages\.b: expected a group"),
        ("del c.mesh", r"mesh: missing"),
        ("c.stages.a.optimizer.lr = 1.0", r"stages\.a\.optimizer\.lr: no such key"),
        (
            "c.stages.a.data.mixture.x = schema.source('n', 's', tasks=('opn',))",
            r"mixture\.x\.tasks: .*did you mean open\?",
        ),
        (
            SOURCE.format("'shapes/easy'"),
            r"mixture\.x\.split: does not name a split of shapes/easy; files end in \.json",
        ),
        (
            SOURCE.format("'shapes/easy', 'train', root='clips'"),
            r"mixture\.x\.root: .*TFDS data set",
        ),
        (
            SOURCE.format("'mine.json', 'train'"),
            r"mixture\.x\.split: 'train' .*mine\.json is a file",
        ),
        (
            SOURCE.format("'mine.jsonl', tasks=('open',)"),
            r"mixture\.x\.tasks: .*mine\.jsonl is a file",
        ),
        (
            SOURCE.format("'{0..9}.tar', root='clips'"),
            r"mixture\.x\.root: a \.tar contains its media",
        ),
        ("1 / 0", r"ZeroDivisionError|division by zero"),
    ],
)
def test_invalid_config_file_is_refused_with_the_key(tmp_path, body, message):
    path = tmp_path / "mine.py"
    lines = [
        "from elva_jax.config import schema",
        "def get_config():",
        "    c = schema.base()",
        "    c.stages.a = schema.stage()",
        "    c.stages.a.steps = 1",
        "    c.curriculum = ('a',)",
        f"    {body}",
        "    return c",
    ]
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=message):
        load(str(path))


def test_a_missing_file_and_a_wrong_argument_are_refused(config_dir):
    with pytest.raises(ConfigError, match="no such config file"):
        load("nowhere.py")
    with pytest.raises(ConfigError, match="did you mean long"):
        load(f"{config_dir}/tiny.py:lng")
    with pytest.raises(ConfigError, match="did you mean size"):
        load(f"{config_dir}/elva.py:sise=7b")
    with pytest.raises(ConfigError, match="needs a value"):
        parse_arg("size", size="7b")
    with pytest.raises(ConfigError, match="config argument 'size' has two values"):
        parse_arg("size=7b,size=3b", size="7b")


# Table 7 of the paper: batch, frames, merging, learning rate, warmup ratio, epochs, longest edge.
TABLE7 = {
    ("7b", 1): (256, 1, False, 4e-5, 0.03, 1, 448),
    ("7b", 2): (256, 16, False, 4e-5, 0.01, 2, 448),
    ("7b", 3): (128, 32, True, 2e-5, 0.01, 1, 672),
    ("1_5b", 1): (256, 1, False, 4e-5, 0.03, 1, 448),
    ("1_5b", 2): (256, 16, False, 4e-5, 0.01, 2, 448),
    ("1_5b", 3): (128, 32, True, 2e-5, 0.01, 1, 672),
    ("7b_hd", 3): (256, 32, True, 2e-5, 0.01, 1, 1344),
}


@pytest.mark.parametrize(("size", "stage"), list(TABLE7))
def test_the_papers_stages_have_the_values_of_table_7(config_dir, size, stage):
    c = load(f"{config_dir}/elva.py:size={size},stage={stage}")
    (name,) = c.curriculum
    s = c.stages[name]
    got = (
        s.batch_size,
        s.data.num_frames,
        s.merging,
        s.optimizer.learning_rate,
        s.optimizer.warmup_ratio,
        s.epochs,
        s.data.longest_edge,
    )
    assert got == TABLE7[size, stage]
    assert (s.optimizer.name, s.optimizer.weight_decay, s.optimizer.final_ratio) == (
        "adamw",
        0.0,
        0.0,
    )
    assert (c.model.dtype, c.model.patch_size, c.model.patch_width) == ("bfloat16", 28, 1024)
    assert (s.loss.generation, s.loss.tube, s.loss.contrastive) == (
        (1.0, 0.0, 0.0) if stage == 3 else (1.0, 1.0, 1.0)
    )


def test_a_full_example_of_each_stage_fits_its_sequence(config_dir):
    """Counted as in the paper: all frames, square with the longest edge, and 512 text tokens."""
    for size in ("1_5b", "7b", "7b_hd"):
        c = load(f"{config_dir}/elva.py:size={size}")
        for name in c.curriculum:
            data = c.stages[name].data
            side = data.longest_edge // c.model.patch_size
            assert data.num_frames * (side * side + side + 1) + 512 <= data.seq_len, (size, name)
            assert data.num_frames * side * side <= data.max_patches, (size, name)


def test_every_ablation_and_size_loads(config_dir):
    text = (config_dir / "ablations.py").read_text()
    variants = re.findall(r"\b(table\d_\w+)\b", text.split('"""')[1])
    variants += [
        f"figure3_{kind}_{percent}" for kind in ("merge", "pool") for percent in (75, 50, 25, 12)
    ]
    variants += ["baseline_encoder", "table4_siglip+dinov2", "table4_vivit+languagebind+hiera"]
    assert len(set(variants)) == 25
    seen = set()
    for variant in sorted(set(variants)):
        for size in ("tiny", "1_5b"):
            c = load(f"{config_dir}/ablations.py:variant={variant},size={size}")
            seen.add(c.to_json_best_effort() if size == "tiny" else c.name)
    # Rows with the same training (the paper's default) have different names.
    assert len(seen) == 50


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("table4_dino", r"^variant: .*did you mean table4_dinov2\?"),
        ("table4_siglip+dino", r"^a tower of table4_siglip\+dino: .*did you mean dinov2\?"),
        ("table4_vivit+vivit", r"^variant: table4_vivit\+vivit names a tower twice"),
    ],
)
def test_unknown_towers_of_table4_are_refused(config_dir, variant, message):
    with pytest.raises(ConfigError, match=message):
        load(f"{config_dir}/ablations.py:variant={variant}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "--config.model.patch_size=16",
            r"model\.patch_size: with patch_embed = encoder it must be teacher\.patch_size = 8,"
            r" got 16",
        ),
        ("--config.teacher.patch_size=65", r"model\.patch_size: .*= 65, got 8"),
        (
            "--config.teacher.image_size=7",
            r"teacher\.patch_size: must be in 1 … image_size = 7, got 8",
        ),
        ("--config.teacher.kind=eva_clip", r"teacher\.kind: .*needs a siglip tower"),
        (
            "--config.stages.video.data.max_patches=100",
            r"stages\.video\.data\.max_patches: 100 is not a multiple of the 64 patches",
        ),
        (
            "--config.stages.video.loss.contrastive=0.1",
            r"stages\.video\.loss\.contrastive: must be 0: .*no <FRAME>",
        ),
        (
            "--config.curriculum=('video',)",
            r"model\.patch_embed: encoder takes its vision tower from a teacher",
        ),
    ],
)
def test_an_encoder_based_baseline_that_cannot_work_is_refused(config_dir, override, message):
    with pytest.raises(ConfigError, match=message):
        load(f"{config_dir}/ablations.py:variant=baseline_encoder", [override])


def test_encoder_based_baseline_has_the_papers_tower_and_fits_its_frames(config_dir):
    c = load(f"{config_dir}/ablations.py:variant=baseline_encoder,size=7b")
    t = c.teacher
    shape = (
        t.image_size,
        t.patch_size,
        t.hidden_size,
        t.intermediate_size,
        t.num_layers,
        t.num_heads,
    )
    assert shape == (336, 14, 1024, 4096, 24, 16)
    for name in c.curriculum:
        data = c.stages[name].data
        assert data.num_frames * 576 + 512 <= data.seq_len, name
        assert data.num_frames * 576 <= data.max_patches, name
        assert c.stages[name].optimizer.freeze


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return None", "get_config returned NoneType; return the ConfigDict that"),
        ("return {'seed': 1}", "get_config returned dict; return the ConfigDict that"),
        ("import sys; sys.exit('gone')", "SystemExit: gone"),
        ("raise KeyboardInterrupt", None),
        ("raise KeyError('no\\nsuch\\nkey')", "KeyError: 'no.*key'"),
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
        ("return schema.nothing()", "AttributeError: .*nothing"),
        ("return schema.ConfigDict()", "name: missing; start the config from elva_jax.config"),
        ("pass\n  x", "IndentationError: unindent"),
    ],
)
def test_failing_config_file_gives_one_line(tmp_path, body, message):
    path = tmp_path / "mine.py"
    path.write_text(f"from elva_jax.config import schema\ndef get_config():\n    {body}\n")
    if message is None:
        with pytest.raises(KeyboardInterrupt):
            load(str(path))
        return
    with pytest.raises(ConfigError, match=message) as error:
        load(str(path))
    assert "\n" not in str(error.value)


def test_a_config_file_without_get_config_is_refused(tmp_path):
    (tmp_path / "mine.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match=r"mine\.py: defines no function get_config"):
        load(f"{tmp_path}/mine.py")


def test_cudnn_cannot_split_sequences(config_dir):
    with pytest.raises(
        ConfigError,
        match=r"mesh\.context: 2 splits sequences, which model\.attention = cudnn cannot;"
        r" use xla or auto",
    ):
        load(f"{config_dir}/tiny.py", ["--config.mesh.context=2", "--config.model.attention=cudnn"])


@pytest.mark.parametrize("others", [(), ("model.attention=cudnn",), ("mesh.context=2",)])
def test_frames_attend_in_both_directions_by_xla_alone(config_dir, others):
    keys = ["model.frame_attention=bidirectional", "model.attention=xla"]
    load(f"{config_dir}/tiny.py", [f"--config.{key}" for key in keys])
    wrong = [*(keys[:1] if not others or "attention" in others[0] else keys), *others]
    with pytest.raises(ConfigError, match=r"frame_attention: bidirectional needs .* = xla and"):
        load(f"{config_dir}/tiny.py", [f"--config.{key}" for key in wrong])


@pytest.mark.parametrize(
    "words",
    [
        ["--config.seed=1", "--config.seed=1"],
        ["--config.seed", "1", "-config.seed=2"],
        ["--config.seed=1", "--config.name=x", "--config.seed=3"],
    ],
)
def test_a_key_has_one_value_on_the_command_line(config_dir, words):
    with pytest.raises(ConfigError, match=r"^seed: has two values on the command line"):
        load(f"{config_dir}/tiny.py", words)
