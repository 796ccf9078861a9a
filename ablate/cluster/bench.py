"""Rates of this machine's own `bench`: the fastest backend of each class of work, at the shapes that were timed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from ablate.cluster.hardware import Cluster
from ablate.cluster.inputs import Draws, Input, draw
from ablate.cluster.profile import REPLACES
from ablate.cluster.rates import Rates
from ablate.cluster.work import Attention, Product
from ablate.documents import read_json

CURE = "give what `dsv3-ablate bench kernels --json` printed on a device of this cluster"
SPREAD = 0.05  # of a class that was measured at one shape; else the shapes' own spread
BF16_BACKEND = "bfloat16 library"  # what bench times FP8's operations against


def bench_corrections(
    path: Path, cluster: Cluster, inputs: Mapping[str, Input]
) -> tuple[dict[str, Input], dict[str, str]]:
    """The inputs with a factor for each class that was timed: measured over predicted seconds; and class -> its name.

    ValueError for a document without timings, or of another device than the cluster's.
    """
    document = read_json(path, "the bench results", CURE)
    try:
        device, found = _device(document), _factors(document, cluster, inputs)
    except (KeyError, TypeError, AttributeError) as fault:
        raise ValueError(f"cannot use the bench results {path}: {fault!r} is not as bench writes it; {CURE}") from None
    if cluster.device.lower() not in device.lower():
        raise ValueError(f"the bench results {path} are of {device}, and the cluster has {cluster.device}; {CURE}")
    if not found:
        raise ValueError(f"the bench results {path} hold no timed operation that the simulator knows; {CURE}")
    changed, names = dict(inputs), {}
    for kind, factors in found.items():
        names[kind] = f"measured_{kind}"
        centre = geometric_mean(factors)
        low, high = min([*factors, centre * (1 - SPREAD)]), max([*factors, centre * (1 + SPREAD)])
        changed[names[kind]] = Input(
            value=centre, low=low, high=high, label="measured here", unit="of the predicted seconds",
            source=f"bench on {device}, {document['date']}",
        )  # fmt: skip
        for name in REPLACES.get(kind, (kind,)):
            item = inputs[name]
            changed[name] = Input(
                value=item.value, low=item.value, high=item.value, label=item.label, source=item.source
            )
    return changed, names


def _device(document: Mapping[str, Any]) -> str:
    return str(document["machine"]["name"] or document["environment"]["device"])


def _factors(document: Mapping[str, Any], cluster: Cluster, inputs: Mapping[str, Input]) -> dict[str, list[float]]:
    """Class -> measured over predicted seconds, one for each shape, of the fastest backend."""
    balanced = Input(value=1.0, low=1.0, high=1.0, label="exact", source="bench spreads rows evenly")
    draws = draw(dict(inputs) | {"routing_imbalance": balanced}, n_samples=0)
    found: dict[str, list[float]] = {}
    for operation in document["operations"]:
        timed = [row for row in operation["backends"] if "seconds" in row]
        for kind, seconds in _predicted(operation, cluster, draws):
            rows = [row for row in timed if (row["backend"] == BF16_BACKEND) == (kind == "bf16_product")]
            if rows:
                fastest = min(row["seconds"]["median"] for row in rows)
                found.setdefault(kind, []).append(fastest / seconds)
    return {kind: [f for f in factors if math.isfinite(f)] for kind, factors in found.items()}


def _predicted(operation: Mapping[str, Any], cluster: Cluster, draws: Draws) -> Iterator[tuple[str, float]]:
    """(class, predicted seconds) of an operation that the simulator knows."""
    name, group, shape = operation["name"], operation["group"], operation["shape"]
    sms = cluster.n_sms
    rates = Rates(cluster=cluster, draws=draws, low_precision=False)
    precision = "fp8" if group == "fp8" else "bf16"
    if name == "product":
        product = Product(name=name, rows=shape["N"], inner=shape["I"], outer=shape["O"])
        for kind in ("fp8_product", "bf16_product"):
            yield kind, float(rates.product_seconds(product, kind, sms)[0])
    elif name == "grouped product":
        product = Product(name=name, rows=shape["N"], inner=shape["I"], outer=shape["O"], groups=shape["E"])
        kind = f"{precision}_grouped"
        yield kind, float(rates.product_seconds(product, kind, sms)[0])
    elif name == "grouped weight gradient":
        product = Product(
            name=name, rows=shape["I"] * shape["E"], inner=shape["N"] // shape["E"], outer=shape["O"],
            groups=shape["E"],
        )  # fmt: skip
        kind = f"{precision}_weight_gradient"
        yield kind, float(rates.product_seconds(product, kind, sms)[0])
    elif name in ("latent attention forward", "latent attention backward"):
        pairs = shape["B"] * shape["H"] * shape["T"] * (shape["T"] + 1)
        core = Attention(flops=float(pairs * (shape["K"] + shape["P"] + shape["V"])), length=shape["T"])
        kind = f"attention_{name.rpartition(' ')[2]}"
        yield kind, float(rates.attention_seconds(core, kind, sms)[0])
    elif name.endswith(", both copies"):
        row = next((row for row in operation["backends"] if "bytes_per_s" in row), None)
        if row is not None:
            moved = row["bytes_per_s"] * row["seconds"]["median"]
            yield "quantise", float(rates.seconds_of_bytes(moved, "quantise")[0])
