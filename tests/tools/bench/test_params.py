"""Tests of `elva bench params`: Table 3."""


def test_patch_embeddings_are_compared_with_the_paper(bench):
    status, out, err, report = bench("params")
    assert (status, err) == (0, "")
    rows = {(row["size"], row["kind"]): row for row in report["rows"]}
    assert {key: row["paper_millions"] for key, row in rows.items()} == {
        ("1.5B", "naive"): None,
        ("1.5B", "video"): None,
        ("7B", "naive"): 6,
        ("7B", "video"): 9,
    }
    for row in rows.values():
        d = {"1.5B": 1536, "7B": 3584}[row["size"]]
        learned = 2 * 1024 + 1024  # <FRAME>, <LINE>, and the bias of the first map
        attention = 3 * 1024 * 1024 if row["kind"] == "video" else 0
        assert row["patch_embed"] == 28 * 28 * 3 * 1024 + 1024 * d + learned + attention
        assert row["paper_millions"] in (None, round(row["patch_embed"] / 1e6))
        assert (
            row["total"] - row["patch_embed"]
            == {"1.5B": 1_543_714_304, "7B": 7_615_616_512}[row["size"]]
        )
    assert "7B    video                     9.23         9      7615.6  7624.8" in out


def test_unknown_flags_are_refused(bench):
    status, _, err, report = bench("params", "--frames", "32")
    assert status == 2
    assert "unrecognized option: --frames" in err
    assert report is None
