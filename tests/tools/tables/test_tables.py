"""`elva bench table1` and the like: the paper's figures, the protocols, and tiny runs of them."""

import dataclasses
import json
import runpy
from pathlib import Path

import pytest
from tests.tools.recaption.conftest import Server, completion, send

import elva_jax
from elva_jax import testing
from elva_jax.errors import ConfigError
from elva_jax.evaluation.benchmarks import registry
from elva_jax.models.elva import merging_of
from elva_jax.ops.merging import MergeLayer
from elva_jax.tools.analysis import paper
from elva_jax.tools.tables import figures
from elva_jax.tools.tables.command import source_of
from elva_jax.tools.tables.measure import Asked, Source, config_of, reduced, rows_to_measure
from elva_jax.tools.tables.protocols import PROTOCOLS
from elva_jax.tools.tables.show import show

ABLATIONS = Path(__file__).parents[3] / "configs/ablations.py"


def test_the_papers_figures_agree_with_what_it_says_of_them():
    """The differences of its rows are those of its claims, and each is a percentage."""
    for name, protocol in PROTOCOLS.items():
        for row in protocol.rows.values():
            assert set(row.figures.values) <= set(protocol.tasks)
            assert all(20 < value < 80 for value in row.figures.values.values())
        for claim in protocol.claims:
            more, less = (protocol.rows[label].figures.values for label in (claim.more, claim.less))
            gains = [more[b] - less[b] for b in claim.benchmarks if b in more]
            if gains:
                assert sum(gains) / len(gains) == pytest.approx(claim.points), (name, claim.text)
    # What guidance adds to each of Table 2's benchmarks, from loss to loss.
    gen, _, _, both = (row.values for row in figures.TABLE2.values())
    gains = {name: both[name] - gen[name] for name in figures.ABLATION}
    expected = {"gqa": 2.2, "seed_image": 4.8, "msvd_qa": 2.2, "videomme": 0.6}
    assert gains == pytest.approx(expected)


def test_every_row_has_a_recipe_that_exists_and_the_twelve_benchmarks_are_asked():
    get_config = runpy.run_path(str(ABLATIONS))["get_config"]
    recipes = [row.recipe for p in PROTOCOLS.values() for row in p.rows.values() if row.recipe]
    for variant in {recipe.partition("variant=")[2] for recipe in recipes}:
        assert get_config(f"variant={variant},size=1_5b").name == f"{variant}-1_5b"
    assert len({*figures.VIDEO, *figures.IMAGE}) == 12 == len(figures.SHORT)
    for protocol in PROTOCOLS.values():
        found = registry.find(protocol.tasks)
        assert [benchmark.name for benchmark in found] == list(protocol.tasks)


def test_what_is_not_known_of_the_paper_is_said():
    """Of Tables 4, 6 and 10 and Figure 3 all numbers, of Table 1 those on three benchmarks."""
    unknown = {}
    for name, protocol in PROTOCOLS.items():
        missing = [
            {"row": label, "recipe": "", "paper": dict(row.figures.values)}
            for label, row in protocol.rows.items()
        ]
        text = show(protocol, {"cells": [], "missing": missing, "claims": []})
        assert max(map(len, text.splitlines())) <= 80
        _, _, said = text.partition("not known here: the paper's numbers on ")
        unknown[name] = said.split("\n")[0]
    assert unknown == {
        "table1": "Video-ChatGPT, EgoSchema, MVBench",
        "table2": "",
        "table3": "",
        "table4": "GQA, SEED image, MSVD-QA, Video-MME",
        "table6": "Video-MME",
        "table10": "GQA, SEED image, MME, MMBench",
        "fig3": "Video-MME, MLVU",
    }


def test_a_share_is_shown_in_percent_beside_its_scale():
    cell = {"row": "mine", "benchmark": "egoschema", "title": "EgoSchema", "ours": 0.5}
    cell |= {"low": 0.4, "high": 0.6, "maximum": 1.0, "questions": 500, "statuses": {}}
    cell |= {"paper": 0.525, "difference": -0.025, "not_comparable": []}
    sums = {**cell, "row": "other", "benchmark": "mme", "maximum": 2000.0, "ours": 1520.4}
    text = show(PROTOCOLS["table1"], {"cells": [cell, sums], "missing": [], "claims": []})
    row = next(line.split() for line in text.splitlines() if line.startswith(" mine"))
    assert row == ["mine", "EgoSchema", "50.0", "40.0–60.0", "52.5", "-2.5", "500", "0"]
    assert "Scores are of 100, or of what stands beside the benchmark" in text
    assert "other  MME of 2000  1520.4" in text


def test_table_1_of_two_checkpoints(bench, run_dir, data_root, tmp_path):
    words = ("--data-root", data_root, "--tasks", "videomme", "--output", tmp_path / "answers")
    status, out, err, report = bench(
        *("table1", "--checkpoint", f"elva-7b={run_dir}", "--checkpoint", f"mine={run_dir}"), *words
    )
    assert status == 0, err
    assert [cell["row"] for cell in report["cells"]] == ["ELVA-7B", "mine"]
    ours = report["cells"][0]
    assert (ours["paper"], ours["questions"], ours["metric"]) == (47.1, 3, "accuracy")
    assert ours["ours"] == pytest.approx(100 / 3 * round(ours["ours"] * 3 / 100), abs=1e-4)
    assert ours["difference"] == pytest.approx(ours["ours"] - 47.1)
    assert ours["settings"]["hybrid"]["high_frames"] == 32
    assert ours["not_comparable"] == ["the paper's number is second-hand"]
    assert report["cells"][1]["not_comparable"] == ["the paper's number is not known here"]
    assert "EVE-7B Video-MME – – 29.3 –" in " ".join(out.split())
    assert "1 the paper's number is second-hand" in out
    assert max(map(len, out.splitlines())) <= 80


def test_table_6_mixes_frames_of_one_checkpoint(bench, run_dir, data_root):
    words = ("--data-root", data_root, "--tasks", "videomme", "--limit", "1")
    rows = [f"{label}={run_dir}" for label in ("16+8", "16+0")]
    status, out, err, report = bench(
        "table6", "--checkpoint", rows[0], "--checkpoint", rows[1], *words
    )
    assert status == 0, err
    assert {c["row"]: c["settings"]["frames"] for c in report["cells"]} == {"16+0": 16, "16+8": 24}
    assert "a limit of 1 questions" in out
    assert "8 low-resolution frames beside 16 high ones\n    Video-MME: paper up to +5.9" in out
    protocol, asked = PROTOCOLS["table6"], Asked(benchmarks=(), root=Path())
    for (high, low), row in zip(paper.TABLE6, protocol.rows.values(), strict=True):
        hybrid = config_of(protocol, row, asked).hybrid
        assert (hybrid["high_frames"], hybrid["low_frames"]) == (high, low)
        assert (hybrid["high_edge"], hybrid["low_edge"]) == (672, 224)


def test_figure_3_replaces_the_merging_of_one_checkpoint(bench, run_dir, data_root):
    words = ("--checkpoint", run_dir, "--data-root", data_root, "--tasks", "videomme")
    status, out, err, report = bench("fig3", *words, "--frames", "4", "--limit", "1")
    assert status == 0, err
    kept = {cell["row"]: cell["kept"] for cell in report["cells"]}
    assert list(kept) == list(figures.FIGURE3)
    for kind in ("merge", "pool"):
        shares = [kept[f"{kind}_{percent}"] for percent in figures.KEPT]
        assert shares == sorted(shares, reverse=True)
        assert shares[-1] < 1
    assert all(cell["questions_per_second"] > 0 for cell in report["cells"])
    assert "where 50 % of the tokens are kept\n    Video-MME, MLVU: paper without a num" in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("name", PROTOCOLS)
def test_without_a_checkpoint_the_papers_rows_stand_alone(bench, name):
    status, out, err, report = bench(name)
    assert (status, err) == (0, "")
    assert report["cells"] == []
    assert [row["row"] for row in report["missing"]] == list(PROTOCOLS[name].rows)
    for row in PROTOCOLS[name].rows.values():
        assert row.recipe in out
        assert max(map(len, out.splitlines())) <= 80
        assert all(f"{value:.1f}" in out for value in row.figures.values.values())


def test_ablations_take_a_checkpoint_for_each_row(bench, run_dir, data_root):
    words = ("--data-root", data_root, "--tasks", "videomme", "--frames", "2")
    rows = [f"{label}={run_dir}" for label in ("gen", "all")]
    status, out, err, report = bench(
        "table2", "--checkpoint", rows[1], "--checkpoint", rows[0], *words
    )
    assert status == 0, err
    assert [(c["row"], c["paper"]) for c in report["cells"]] == [("gen", 37.9), ("all", 38.5)]
    assert "variant=table2_gen_mse" in out
    assert "variant=table2_all" not in out
    assert all(c["not_comparable"] == ["other frames than the paper's"] for c in report["cells"])


@pytest.mark.parametrize(
    ("name", "label", "number"),
    [("table3", "naive", 39.6), ("table4", "siglip_video", None), ("table10", "mine", None)],
)
def test_the_other_tables_ask_a_checkpoint_too(bench, run_dir, data_root, name, label, number):
    words = ("--data-root", data_root, "--tasks", "videomme", "--frames", "2")
    status, out, err, report = bench(name, "--checkpoint", f"{label}={run_dir}", *words)
    assert status == 0, err
    (cell,) = report["cells"]
    assert (cell["row"], cell["paper"], cell["questions"]) == (label, number, 3)
    known = "the paper's number is not known here"
    known = "another benchmark than the paper's" if name == "table10" else known
    frames = "other frames than the paper's"
    assert cell["not_comparable"] == ([] if number else [known]) + [frames]
    assert known in out or number


def test_own_questions(bench, run_dir, data_root, tmp_path):
    record = {"video": "0.mp4", "question": "What color is it?", "answer": "red"}
    file = tmp_path / "own.json"
    file.write_text(json.dumps([record | {"options": ["red", "green", "blue"]}]))
    words = ("--data", file, "--data-root", data_root / "data", "--frames", "2")
    status, out, err, report = bench("table1", "--checkpoint", f"ELVA-7B={run_dir}", *words)
    assert status == 0, err
    (cell,) = report["cells"]
    assert (cell["title"], cell["questions"], cell["paper"]) == ("own.json", 1, None)
    assert "another benchmark than the paper's" in out


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("table2", "runs/x", "which row is it? give LABEL=DIR, with one of gen, gen_mse, gen_con"),
        ("table2", "gn=runs/x", "Table 2 has no row 'gn'; did you mean gen?"),
        ("fig3", "merge_51=x", "Figure 3 has no row 'merge_51'; did you mean merge_"),
    ],
)
def test_a_label_that_is_no_row_is_refused(bench, name, words, message):
    status, _, err, _ = bench(name, "--checkpoint", words)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


def test_a_row_takes_one_checkpoint_and_its_own_reduction():
    fig3 = PROTOCOLS["fig3"]
    sources = [source_of("merge_50=runs/a", fig3), source_of("runs/b", fig3)]
    with pytest.raises(ConfigError, match="two for the row 'merge_50'"):
        rows_to_measure(fig3, sources)
    ((label, row, path),) = rows_to_measure(fig3, sources[:1])
    assert (label, path, row.reduce) == ("merge_50", "runs/a", None)
    found = rows_to_measure(fig3, [Source(label=None, path="runs/b")])
    assert [row.reduce for _, row, _ in found] == [row.reduce for row in fig3.rows.values()]


def test_reductions_replace_the_merging_layers(run_dir):
    model = elva_jax.load(run_dir)
    merge, pool = reduced(model, "merge", 0.25), reduced(model, "pool", 0.25)
    before = merging_of(model.config.model).layers
    assert merge.engine.weights is pool.engine.weights is model.engine.weights
    assert merging_of(merge.config.model).layers == (
        before[0],
        dataclasses.replace(before[1], ratio=0.25),
    )
    assert merging_of(pool.config.model).layers == (MergeLayer(0, "pool", 1.0, 0.25),)
    plain = testing.tiny_model(
        merge_layers=(), merge_policies=(), merge_thresholds=(), merge_ratios=()
    )
    with pytest.raises(ConfigError, match="no merging layer with a ratio"):
        reduced(plain, "merge", 0.5)


def test_open_answers_are_those_of_a_judge(bench, run_dir, data_root, tmp_path):
    root = tmp_path / "msvd_qa"
    root.mkdir()
    video = next(data_root.rglob("*.mp4"))
    (root / "clip.mp4").write_bytes(video.read_bytes())
    record = {"question_id": 1, "video_name": "clip", "question": "what moves", "answer": "dog"}
    (root / "test_qa.json").write_text(json.dumps([record]))
    server = Server()
    try:
        reply = completion('{"pred": "yes", "score": 4}')
        server.answer = lambda handler, *_: send(handler, 200, reply)
        judge = ("--judge", server.url, "--judge-model", "gpt", "--tasks", "msvd_qa")
        words = ("--checkpoint", f"mine={run_dir}", "--data-root", tmp_path, "--frames", "2")
        status, _, err, report = bench("table1", *words, *judge)
    finally:
        server.close()
    assert status == 0, err
    (cell,) = report["cells"]
    assert (cell["metric"], cell["ours"]) == ("judge accuracy", 100.0)
    assert "another judge or prompt than the paper's" in cell["not_comparable"]
    status, _, err, _ = bench("table1", *words, "--judge", "http://localhost")
    assert status == 2
    assert "--judge needs --judge-model" in err
