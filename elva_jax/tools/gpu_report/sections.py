"""The tables of report.md; each is a function of the measurements by part, "" without any."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from elva_jax.tools.analysis.paper import TABLE5, VARIANTS

Parts = dict[str, list[dict[str, Any]]]
GIB = 2**30
# Shares of the card's peaks.
MFU, PREFILL, DECODE = 0.50, 0.50, 0.65
SCHEMES = {"none": "bfloat16", "int8": "int8", "int4": "int4"}


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; "" without rows."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    head = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    return "\n".join([*head, *lines]) if lines else ""


def measured(parts: Parts, name: str) -> list[dict[str, Any]]:
    """The measurements of a part that have not failed."""
    return [row for row in parts.get(name, ()) if not row.get("error") and not row.get("skipped")]


def machine(parts: Parts) -> str:
    """Card, driver, versions and ceilings."""
    out = []
    for row in measured(parts, "environment"):
        if row["case"] == "machine":
            versions = ", ".join(f"{name} {number}" for name, number in row["versions"].items())
            smi = ", ".join(f"{key} {value}" for key, value in (row["nvidia_smi"] or {}).items())
            out.append(f"{row['device']} ({smi or row['platform']}); Python {row['python']}")
            out.append(versions + (f"; XLA_FLAGS {row['xla_flags']}" if row["xla_flags"] else ""))
        elif "flops_per_second" in row:
            speed = f"{row['flops_per_second'] / 1e12:.0f} TFLOP/s"
            out.append(f"A product of side {row['side']} in bfloat16: {speed}{_of(row, 'peak')}")
        elif "bytes_per_second" in row:
            speed = f"{row['bytes_per_second'] / 1e12:.2f} TB/s"
            out.append(f"Reading an array: {speed}{_of(row, 'bandwidth')}")
    return "  \n".join(out) or "No measurement of the machine."


def _of(row: dict[str, Any], what: str) -> str:
    return f", {percent(row['share'])} % of the {what}" if row.get("share") else ""


def percent(share: float | None) -> str:
    """A share in percent, truncated to one digit; a dash where it is unknown."""
    return "–" if share is None else f"{int(1000 * share) / 10:.1f}"


def milliseconds(seconds: dict[str, float] | None) -> str:
    """The median, with the range in parentheses."""
    if not seconds:
        return "–"
    median, least, most = (1e3 * seconds[name] for name in ("median", "least", "most"))
    return f"{median:.2f} ({least:.2f}–{most:.2f})"


def gib(size: float | None) -> str:
    """Bytes in GiB; a dash where they are unknown."""
    return "–" if size is None else f"{size / GIB:.2f}"


def goals(parts: Parts) -> str:
    """Each goal beside the best measurement of it."""
    rows = []
    for stage in ("stage2", "stage3"):
        shares = [row.get("share") for row in measured(parts, f"train_{stage}")]
        rows.append((f"{stage}: MFU, %", MFU, _best(shares)))
    for case, goal in (("prefill", PREFILL), ("decode", DECODE)):
        what = "peak" if case == "prefill" else "bandwidth"
        shares = [row.get("share") for row in measured(parts, "answer_7b") if row["case"] == case]
        rows.append((f"7B {case}: share of {what}, %", goal, _best(shares)))
    times = _times(parts)
    for frames, cells in TABLE5.items():
        base = cells["encoder_based"].ttft_s
        rows.append(
            (
                f"first token, + merge + HR, {frames} frames: less by %",
                1 - cells["merge_hr"].ttft_s / base,
                _reduction(times, frames, "merge_hr"),
            )
        )
    if all(found is None for _, _, found in rows):
        return ""
    return table(
        ("what", "goal", "measured", "reached"),
        [
            (name, percent(goal), percent(found), _reached(found, goal))
            for name, goal, found in rows
        ],
    )


def _best(shares: Iterable[float | None]) -> float | None:
    return max((share for share in shares if share is not None), default=None)


def _reached(found: float | None, goal: float) -> str:
    return "–" if found is None else "yes" if found >= goal else "no"


def training(parts: Parts) -> str:
    """Steps of both stages, ours and PyTorch's."""
    rows = [
        (
            row["stage"],
            who if row["case"] == "as configured" else f"{who}, {row['case']}",
            str(row["batch_size"]),
            f"{row['tokens']:,.0f}",
            f"{row['seconds']['median']:.3f}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['tflops']:.1f}",
            percent(row.get("share")),
            f"{row['peak_gib']:.2f}" if row.get("peak_gib") else "–",
        )
        for stage in ("stage3", "stage2")
        for who, part in (("ours", f"train_{stage}"), ("PyTorch", f"pytorch_{stage}"))
        for row in measured(parts, part)
    ]
    columns = (
        "step",
        "of",
        "rows",
        "tokens",
        "seconds",
        "tokens/s",
        "TFLOP/s",
        "MFU %",
        "peak GiB",
    )
    return table(columns, rows)


def plan(parts: Parts) -> str:
    """The plan's memory and time beside those of the steps as configured."""
    rows = []
    for row in measured(parts, "plan"):
        real = [r for r in measured(parts, f"train_{row['case']}") if r["case"] == "as configured"]
        fast, slow = row["seconds"]
        rows.append(
            (
                row["case"],
                row["device"],
                gib(row["memory"]["total"]),
                f"{real[0]['peak_gib']:.2f}" if real and real[0].get("peak_gib") else "–",
                f"{fast:.2f}–{slow:.2f}",
                f"{real[0]['seconds']['median']:.2f}" if real else "–",
            )
        )
    columns = ("step", "planned for", "plan GiB", "real GiB", "plan s", "real s")
    return table(columns, rows)


def answers(parts: Parts) -> str:
    """Prefill and decoding by the type of the weights."""
    rows = []
    for scheme, name in SCHEMES.items():
        suffix = "" if scheme == "none" else f"_{scheme}"
        found = {row["case"]: row for row in measured(parts, f"answer_7b{suffix}")}
        if not found:
            continue
        prefill, decode = found.get("prefill", {}), found.get("decode", {})
        seconds = prefill.get("seconds")
        speed = decode.get("tokens_per_second")
        rows.append(
            (
                name,
                gib(found.get("weights", {}).get("bytes")),
                f"{prefill['tokens']:,}" if prefill else "–",
                milliseconds(seconds),
                f"{prefill['flops'] / seconds['median'] / 1e12:.0f}" if seconds else "–",
                percent(prefill.get("share")),
                f"{speed:.1f}" if speed else "–",
                f"{decode['bytes'] * speed / 1e12:.2f}" if speed else "–",
                percent(decode.get("share")),
            )
        )
    columns = ("weights", "GiB", "tokens", "prefill ms", "TFLOP/s", "of peak %")
    return table((*columns, "tokens/s", "TB/s", "of bandwidth %"), rows)


def _times(parts: Parts) -> dict[tuple[int, str], dict[str, Any]]:
    """Table 5's measurements of time by frames and variant."""
    rows = measured(parts, "table5")
    return {(row["frames"], row["variant"]): row for row in rows if "variant" in row}


def _reduction(times: dict[tuple[int, str], Any], frames: int, variant: str) -> float | None:
    base, row = times.get((frames, "encoder_based")), times.get((frames, variant))
    if not base or not row or variant == "encoder_based":
        return None
    return 1 - row["seconds"]["median"] / base["seconds"]["median"]


def table5(parts: Parts) -> str:
    """Time to the first token and memory, with reductions beside the paper's."""
    times = _times(parts)
    peaks = {
        (row["frames"], variant): row.get("peak_bytes")
        for variant in VARIANTS
        for row in measured(parts, f"memory_{variant}")
    }
    rows = [
        (str(frames), name, *_table5_cells(times, peaks, frames, variant))
        for frames in sorted({frames for frames, _ in (*times, *peaks)})
        for variant, name in VARIANTS.items()
    ]
    columns = (
        *("frames", "model", "tokens", "left %", "first token ms", "less by %", "paper %"),
        *("peak GiB", "less by %", "paper %"),
    )
    return table(columns, rows)


def _table5_cells(
    times: dict[tuple[int, str], Any],
    peaks: dict[tuple[int, str], int | None],
    frames: int,
    variant: str,
) -> tuple[str, ...]:
    row, peak = times.get((frames, variant)), peaks.get((frames, variant))
    base, cells = peaks.get((frames, "encoder_based")), TABLE5.get(frames, {})
    paper_time = paper_memory = None
    if cells and variant != "encoder_based":
        first, cell = cells["encoder_based"], cells[variant]
        paper_time = 1 - cell.ttft_s / first.ttft_s
        paper_memory = 1 - cell.memory_gb / first.memory_gb
    less = 1 - peak / base if peak and base and variant != "encoder_based" else None
    return (
        f"{row['tokens']:,}" if row else "–",
        percent(row["kept"]) if row else "–",
        milliseconds(row["seconds"] if row else None),
        percent(_reduction(times, frames, variant)),
        percent(paper_time),
        gib(peak),
        percent(less),
        percent(paper_memory),
    )


def attention(parts: Parts) -> str:
    """Time and error of each length and kind of rows."""
    rows = []
    for row in sorted(measured(parts, "attention"), key=lambda row: (row["rows"], row["length"])):
        for step in ("forward", "gradients"):
            seconds = {name: row["seconds"].get(f"{name} {step}") for name in ("cudnn", "xla")}
            if not any(seconds.values()):
                continue
            fused, blocks = seconds["cudnn"], seconds["xla"]
            faster = f"{blocks['median'] / fused['median']:.1f}" if fused and blocks else "–"
            rows.append(
                (
                    row["rows"],
                    f"{row['length']:,}",
                    step,
                    milliseconds(fused),
                    percent(row.get("share", {}).get(f"cudnn {step}")),
                    milliseconds(blocks),
                    faster,
                    *(_error(row["errors"].get(f"{name} {step}")) for name in ("cudnn", "xla")),
                )
            )
    columns = ("rows", "tokens", "step", "cuDNN ms", "of peak %", "XLA ms", "times as fast")
    return table((*columns, "cuDNN error", "XLA error"), rows)


def _error(value: float | str | None) -> str:
    return f"{value:.1e}" if isinstance(value, float) else "–" if value is None else "fails"


def serving(parts: Parts) -> str:
    """Throughput of the serving engine, and its time to the first token."""
    rows = []
    for row in measured(parts, "serve"):
        alone = row["one_by_one"]
        rows.append(("one by one", f"{alone:.1f}", "1.00", "–"))
        rows += [
            (
                f"{count} client(s)",
                f"{each['tokens_per_second']:.1f}",
                f"{each['tokens_per_second'] / alone:.2f}",
                f"{1e3 * each['first_50']:.0f} / {1e3 * each['first_95']:.0f}",
            )
            for count, each in row["clients"].items()
        ]
    return table(("asked by", "tokens/s", "times", "first token ms, 50 / 95 %"), rows)
