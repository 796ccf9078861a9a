"""A simulation as a document, and the document as text for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ablate.cluster.inputs import document as inputs_document
from ablate.cluster.question import Asked
from ablate.cluster.simulate import METRICS, Simulation
from ablate.quantities import between, memory, number, scaled, significant, whole

SHOWN_IN_TORNADO = 6
SECONDS = ("forward_s", "backward_s", "weight_s", "overlapped_s", "bubble_s", "optimizer_s")
TITLES = {
    "forward_s": "forward alone",
    "backward_s": "backward alone",
    "weight_s": "weight gradients alone",
    "overlapped_s": "forward and backward, overlapped",
    "bubble_s": "bubble",
    "optimizer_s": "optimizer and its traffic",
}


def simulation_document(asked: Asked, found: Simulation) -> dict[str, Any]:
    """Every metric with its range, the layout, every input with its label, and what moves the step most."""
    question = asked.question
    metrics = {name: _metric(found, name) for name in METRICS}
    return {
        "evidence": "simulated",
        "model": asked.name,
        "levels": dict(asked.levels),
        "cluster": question.cluster.facts(),
        "layout": question.layout.facts(question.cluster, question.batch),
        "batch_sequences": question.batch,
        "sequence_length": question.cost.sequence_length,
        **metrics,
        "memory_fits": found.fits,
        "memory_parts_of_fullest_rank": _fullest(found),
        "layers_by_stage": _layers(found),
        "training_flops_per_token": question.cost.training_flops_per_token,
        "inputs": _exact_inputs(asked) + inputs_document(question.inputs),
        "tornado": [
            {"input": name, "step_s_at_low": low, "step_s_at_high": high}
            for name, low, high in found.draws.tornado(found.metrics["step_s"])
        ],
    }


def _metric(found: Simulation, name: str) -> dict[str, float]:
    low, high = found.range(name)
    return {"estimate": found.value(name), "low": low, "high": high}


def _fullest(found: Simulation) -> dict[str, float]:
    rank = max(found.memory, key=lambda rank: rank.total)
    return {name: getattr(rank, name) for name in rank.__dataclass_fields__}


def _layers(found: Simulation) -> list[int]:
    ends = len(found.stages.parts) - 2
    return [sum(n for part, n in stage.parts if part < ends) for stage in found.stages.stages]


def _exact_inputs(asked: Asked) -> list[dict[str, Any]]:
    """The counts that come from the specification; they have no range."""
    cost = asked.question.cost
    counts = {
        "training_flops_per_token": (cost.training_flops_per_token, "FLOP"),
        "trained_parameters": (cost.trained_parameters, ""),
        "tokens_per_step": (asked.question.tokens_per_step, ""),
    }
    source = "closed form of the specification"
    return [
        {"name": name, "value": value, "low": value, "high": value, "unit": unit, "label": "exact", "source": source}
        for name, (value, unit) in counts.items()
    ]


def render(document: Mapping[str, Any]) -> str:
    """The document for a terminal."""
    layout, cluster = document["layout"], document["cluster"]
    hours = document["gpu_hours_per_trillion_tokens"]
    levels = ", ".join(f"{name} {level}" for name, level in document["levels"].items())
    lines = [
        f"Simulated, not measured: {document['model']} on {cluster['title']}",
        levels,
        f"pipeline {layout['pipeline']} x tensor {layout['tensor']} x data {layout['data']}, experts over "
        f"{layout['expert']}, {layout['schedule']}, {layout['n_micro_batches']} micro-batches of "
        f"{layout['micro_batch']}, recomputation {layout['recompute']}"
        + (f" ({layout['source']})" if layout["source"] else ""),
        "",
        _line("step", document["step_s"], "s"),
        *(f"  {_line(TITLES[name], document[name], 's', 33)}" for name in SECONDS if document[name]["high"] > 1e-9),
        _line("exposed communication", document["exposed_communication_s"], "s"),
        _line("MFU, causal attention", document["mfu_causal"], "%", scale=100),
        _line("MFU, attention in full", document["mfu_noncausal"], "%", scale=100),
        f"{'tokens a day':35} {scaled(document['tokens_per_day']['estimate'])}",
        f"{'GPU hours per trillion tokens':35} {whole(hours['estimate'])} ({between(hours['low'], hours['high'], 0)})",
        _memory(document),
        "",
        "What moves the step most, in seconds at the low and at the high end of one input:",
        *_tornado(document),
        "",
        *_labels(document),
    ]
    return "\n".join(lines)


def _line(title: str, metric: Mapping[str, float], unit: str, width: int = 35, scale: float = 1.0) -> str:
    value, low, high = (scale * metric[key] for key in ("estimate", "low", "high"))
    decimals = 2 if value >= 1 else 3
    return f"{title:{width}} {number(value, decimals)} {unit} ({between(low, high, decimals)})"


def _memory(document: Mapping[str, Any]) -> str:
    found = document["memory_bytes_per_rank"]
    parts = ", ".join(f"{name} {memory(n)}" for name, n in document["memory_parts_of_fullest_rank"].items())
    room = memory(document["cluster"]["memory_bytes"])
    said = "fits" if document["memory_fits"] else "DOES NOT FIT: see --search"
    return f"{'memory of the fullest rank':35} {memory(found['estimate'])} of {room}, {said}\n{'':36}{parts}"


def _tornado(document: Mapping[str, Any]) -> list[str]:
    rows = document["tornado"][:SHOWN_IN_TORNADO]
    ends = ((row["input"], significant(row["step_s_at_low"]), significant(row["step_s_at_high"])) for row in rows)
    return [f"  {name:33} {low} to {high}" for name, low, high in ends]


def _labels(document: Mapping[str, Any]) -> list[str]:
    """Inputs by where they come from."""
    found: dict[str, list[str]] = {}
    for item in document["inputs"]:
        found.setdefault(item["label"], []).append(item["name"])
    return [f"{label}: {', '.join(names)}" for label, names in found.items()] + [
        "Ranges in brackets are 5 to 95 % over the inputs' ranges; --json has every input with its source."
    ]
