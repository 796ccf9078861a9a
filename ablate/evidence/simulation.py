"""`simulate`: one variant in one layout, the best layout, and the components' shares of speed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ablate.attribution.indices import TITLES, index_weights, total_weights
from ablate.attribution.lattice import Floats, Lattice, lattice, order_spectrum
from ablate.cluster.document import render, simulation_document
from ablate.cluster.inputs import Draws
from ablate.cluster.layout import SYSTEM, Layout
from ablate.cluster.question import Asked, Request, resolve
from ablate.cluster.search import Candidate
from ablate.cluster.search import search as find_layout
from ablate.cluster.simulate import simulate
from ablate.components.registry import REGISTRY
from ablate.quantities import between, memory, number, significant

INDICES = ("first", "last", "owen")
SAMPLES = 48  # draws of every variant
RESOLVABLE = 0.03  # of a ratio: below it the simulator says nothing of sign or size
CHANNELS = ("total", "flops per token", "flops per s")
NEEDS_EXPERTS = "alltoall"


def simulated(request: Request, *, search: bool) -> tuple[dict[str, Any], str]:
    """A document and its text. Without a layout of its own, a model is given the fastest that fits."""
    asked = resolve(request)
    if not search and asked.layout_known:
        document = simulation_document(asked, simulate(asked.question))
        return document, render(document)
    found, best, tried = find_layout(asked.question)
    document = simulation_document(replace(asked, question=found.question), found)
    why = "" if search else "no layout is published for it and none was given: "
    document["search"] = {"tried": tried, "best": [_candidate(each) for each in best]}
    lines = [render(document), "", f"{why}the fastest of {tried} layouts that fit, by their steps:"]
    lines += [_candidate_line(each, asked) for each in best]
    return document, "\n".join(lines)


def _candidate(each: Candidate) -> dict[str, Any]:
    names = ("pipeline", "tensor", "expert", "micro_batch", "recompute")
    own = {name: getattr(each.layout, name) for name in names}
    return own | {"step_s": each.step_s, "memory_bytes_per_rank": each.memory_bytes}


def _candidate_line(each: Candidate, asked: Asked) -> str:
    at: Layout = each.layout
    data = at.data(asked.question.cluster)
    return (
        f"  {significant(each.step_s)} s, {memory(each.memory_bytes)}: --pipeline {at.pipeline} --tensor {at.tensor} "
        f"--expert {at.expert} --micro-batch {at.micro_batch} --recompute {at.recompute} (data {data})"
    )


def attributed(request: Request) -> tuple[dict[str, Any], str]:
    """The speed of every feasible variant shared out: ln of tokens a GPU and second, full over none.

    It is the sum of a channel that is exact, FLOPs per token, and one that is simulated, FLOP/s. All variants are in
    the full one's layout and under the same draws.
    """
    full = resolve(request)
    if request.enable or request.disable or request.model is not None:
        raise ValueError("--attribute shares out the whole recipe of a preset; leave out --disable, --enable, --model")
    if not full.layout_known:
        raise ValueError("--attribute needs a layout: give --pipeline, --tensor and --expert, or find one by --search")
    names = [name for name, level in full.levels.items() if level == "on" and name != "distill"]
    requires = {name: [r for r in _requires(name) if r in names] for name in names}
    cells = lattice(names, requires)
    table, draws, unfit = _game(request, cells)
    document = _attribution_document(full, cells, table, draws, unfit)
    return document, render_attribution(document)


def _requires(name: str) -> tuple[str, ...]:
    if name in SYSTEM:
        return ("moe",) if name == NEEDS_EXPERTS else ()
    return REGISTRY.component(name).requires


def _game(request: Request, cells: Lattice) -> tuple[Floats, Draws, list[str]]:
    """(channels, cells, draws) of the game; the draws; variants that their GPUs have no memory for."""
    rows, unfit = [], []
    found = None
    for cell in cells.cells:
        off = [name for name in cells.components if name not in cells.names(cell)]
        asked = resolve(replace(request, disable=off))
        found = simulate(asked.question, SAMPLES)
        if not found.fits:
            unfit.append(cells.label(cell))
        flops = float(asked.question.cost.training_flops_per_token)
        rate = asked.question.tokens_per_step / found.metrics["step_s"]
        per_token = np.full_like(rate, -np.log(flops))
        rows.append((np.log(rate), per_token, np.log(rate * flops)))
    assert found is not None
    return np.moveaxis(np.array(rows), 0, 1), found.draws, unfit


def _attribution_document(full: Asked, cells: Lattice, table: Floats, draws: Draws, unfit: list[str]) -> dict[str, Any]:
    spectrum = order_spectrum(cells, table[0, :, 0])
    total = total_weights(cells) @ table[0]
    weights = {index: index_weights(cells, index) for index in INDICES}
    effects = {}
    for i, name in enumerate(cells.components):
        by_index = {index: _number(weights[index][i] @ table[0], draws) for index in INDICES}
        channels = {c: _number(weights["owen"][i] @ table[k], draws) for k, c in enumerate(CHANNELS) if k}
        low, high = by_index["owen"]["low"], by_index["owen"]["high"]
        resolved = low * high > 0 and abs(by_index["owen"]["estimate"]) >= RESOLVABLE
        effects[name] = {**by_index, "channels_of_owen": channels, "resolved": resolved}
    return {
        "evidence": "simulated",
        "metric": "ln(tokens per second per GPU), on minus off",
        "model": full.name,
        "cluster": full.question.cluster.facts(),
        "layout": full.question.layout.facts(full.question.cluster, full.question.batch),
        "total": _number(total, draws),
        "components": effects,
        "order_spectrum": {str(order): share for order, share in spectrum.items()},
        "variants": len(cells.cells),
        "variants_beyond_memory": unfit,
    }


def _number(values: Floats, draws: Draws) -> dict[str, float]:
    low, high = draws.range(values)
    return {"estimate": draws.central(values), "low": low, "high": high}


def render_attribution(document: dict[str, Any]) -> str:
    """Factors of tokens a second: above 1 is faster."""
    lines = [
        f"Simulated, not measured: what each component is worth in tokens a second, {document['model']} on "
        f"{document['cluster']['title']}, one layout for all {document['variants']} variants.",
        "Factors, above 1 is faster; in brackets 5 to 95 % over the inputs. Below 3 % nothing is resolved.",
        "",
        f"{'component':12}{TITLES['owen']:38}{'of it FLOPs/token':20}{TITLES['first']:14}{TITLES['last']}",
    ]
    for name, effect in document["components"].items():
        said = f"{_factor(effect['owen'])}{'' if effect['resolved'] else ' not resolved'}"
        exact = number(np.exp(effect["channels_of_owen"]["flops per token"]["estimate"]), 3)
        lines.append(
            f"{name:12}{said:38}{exact:20}{number(np.exp(effect['first']['estimate']), 3):14}"
            f"{number(np.exp(effect['last']['estimate']), 3)}"
        )
    lines += ["", f"all together {_factor(document['total'])}"]
    unfit = document["variants_beyond_memory"]
    if unfit:
        lines += ["", f"{len(unfit)} of {document['variants']} variants do not fit the memory in this layout."]
    return "\n".join(lines)


def _factor(effect: dict[str, float]) -> str:
    low, high = float(np.exp(effect["low"])), float(np.exp(effect["high"]))
    return f"{number(float(np.exp(effect['estimate'])), 3)} ({between(low, high, 3)})"
