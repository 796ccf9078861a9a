"""A benchmark's document as tables of Markdown, which are read as plain text as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ablate.quantities import memory, milliseconds, percent, scaled, whole


def render(document: Mapping[str, Any]) -> str:
    """The document as Markdown: machine and ceilings, a table for each part that it has, then what has no figure."""
    lines = [*_heading(document)]
    if document["operations"]:
        lines += ["", *_operations(document["operations"])]
    if document["steps"]:
        lines += ["", *_steps(document)]
    if document["tuned"]:
        lines += ["", *_tuned(document["tuned"], document.get("written", ""))]
    without = _without_seconds(document)
    if without:
        lines += ["", "## Not measured", "", *without]
    return "\n".join(lines) + "\n"


def _heading(document: Mapping[str, Any]) -> list[str]:
    environment, ceilings = document["environment"], document["ceilings"]
    packages = ", ".join(f"{n} {environment['packages'][n]}" for n in ("torch", "triton"))
    commit = environment["commit"].get("hash", "")[:12] or "unknown"
    changed = " with changes" if environment["commit"].get("dirty") else ""
    device = environment["device"] if environment["device"] != "cpu" else environment["processor"]
    lines = [
        f"# Speed on {device}",
        "",
        f"{document['date']}; {packages}, CUDA {document['cuda'] or 'none'}, cuDNN {document['cudnn'] or 'none'}; "
        f"commit {commit}{changed}.",
        f"Measured ceilings: copy {scaled(ceilings['bytes_per_s'], 'B/s')}, "
        f"{ceilings['product']['dtype']} product {scaled(ceilings['flops_per_s'], 'FLOP/s')}.",
        "Median seconds with quartiles; share: the seconds that both ceilings allow, over those measured (FP8 may pass "
        "1, as the ceiling is that of the product named). Error: relative, against float64.",
    ]
    if document["smoke"]:
        lines += ["", "**A smoke test: the figures say nothing of the machine.**"]
    return lines


def _operations(operations: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "## Operations",
        "",
        "| operation | shape | backend | ms | quartiles | arithmetic | traffic | share | error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for operation in operations:
        shape = " ".join(f"{k}{v}" for k, v in operation["shape"].items())
        measured = [row for row in operation["backends"] if "seconds" in row]
        fastest = min((row["seconds"]["median"] for row in measured), default=None)
        for row in measured:
            s = row["seconds"]
            name = f"**{row['backend']}**" if s["median"] == fastest and len(measured) > 1 else row["backend"]
            lines.append(
                f"| {operation['name']} | {shape} | {name} | {_time(s)} "
                f"| {scaled(row.get('flops_per_s'), 'FLOP/s')} | {scaled(row.get('bytes_per_s'), 'B/s')} "
                f"| {percent(row.get('share_of_ceiling'), 3)} | {row['relative_error']:.1e} |"
            )
    return lines


def _steps(document: Mapping[str, Any]) -> list[str]:
    model = document["model"]
    lines = [
        "## Training steps",
        "",
        f"Preset {model['preset']}, sequences of {model['sequence_length']} tokens, {model['dtype']}. MFU: training "
        "FLOPs with exact causal attention, over the measured product's rate, and over the datasheet's of bfloat16.",
        "",
        "| step | tokens | ms | quartiles | tokens/s | MFU measured | MFU datasheet | peak memory | backends |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in document["steps"]:
        if "seconds" not in row:
            continue
        named = ", ".join(f"{slot} {name}" for slot, name in row["backends"].items())
        lines.append(
            f"| {row['name']} | {row['tokens_per_step']} | {_time(row['seconds'])} "
            f"| {whole(row['tokens_per_s'])} | {percent(row['mfu_of_measured_peak'], 3)} "
            f"| {percent(row['mfu_of_datasheet'], 3)} | {memory(row['peak_bytes'])} | {named} |"
        )
    return lines


def _tuned(tuned: Sequence[Mapping[str, Any]], written: str) -> list[str]:
    lines = [
        "## Configurations",
        "",
        f"Written to {written}." if written else "Not written.",
        "",
        "| kernel | sizes | configuration | ms of the operation | |",
        "|---|---|---|---|---|",
    ]
    for entry in tuned:
        sizes = " ".join(f"{k}{v}" for k, v in entry["sizes"].items())
        for i, row in enumerate(entry["candidates"]):
            c = row["configuration"]
            text = " ".join([*(f"{k}{v}" for k, v in c["blocks"].items()), f"w{c['num_warps']} s{c['num_stages']}"])
            note = row.get("fault", "shipped" if i == 0 else "")
            seconds = milliseconds(row["seconds"]) if "seconds" in row else ""
            lines.append(f"| {entry['kernel']} | {sizes} | {text} | {seconds} | {note} |")
    return lines


def _without_seconds(document: Mapping[str, Any]) -> list[str]:
    found: dict[str, None] = {}
    for operation in document["operations"]:
        for row in operation["backends"]:
            if "seconds" not in row:
                found[f"- {operation['name']}, {row['backend']}: {row['status']}; {row.get('reason', '')}"] = None
    for row in document["steps"]:
        if "seconds" not in row:
            found[f"- {row['name']}: {row['status']}; {row.get('reason', '')}"] = None
    for text in document["skipped"]:
        found[f"- {text}"] = None
    return list(found)


def _time(seconds: Mapping[str, float]) -> str:
    """Two cells, in milliseconds: the median, and the quartiles."""
    return f"{milliseconds(seconds['median'])} | {milliseconds(seconds['q1'])}-{milliseconds(seconds['q3'])}"
