"""What the simulator is held to: identities, closed-form bubbles, V3's published step, its own speed.

    python benchmarks/simulation.py [--out FILE.json] [--without-attribution]

Prints a table and writes it as JSON. The published figures are those of arXiv:2505.09343, table 4, and
arXiv:2405.04434, section 3.2.3. No input is fitted to any of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ablate.cluster.question import Request, resolve
from ablate.cluster.simulate import model_flops, simulate
from ablate.evidence.simulation import attributed

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "cluster"))
import bubbles  # beside the tests, which compare the same cases

V3 = Request(cluster="h800-2048", preset="v3-671b")
V3_PUBLISHED = {
    "step_s": 19.926,
    "forward_s": 1.13,
    "backward_s": 1.99,
    "weight_s": 0.48,
    "overlapped_s": 13.95,
    "bubble_s": 2.06,
    "optimizer_s": 0.29,
    "gpu_hours_per_trillion_tokens": 180e3,
}
OTHERS = {"DeepSeek-V2 on H800, GPU hours a trillion tokens": (Request(cluster="h800-2048", preset="v2-236b"), 172.8e3)}


def main() -> None:
    arguments = _arguments()
    document: dict[str, Any] = {
        "identities": identities(),
        "bubbles": closed_forms(),
        "v3": {rates: against_published(rates) for rates in ("profile", "published")},
        "others": others(),
        "seconds": {"simulation": _seconds(lambda: simulate(resolve(V3).question))},
    }
    if not arguments.without_attribution:
        document["seconds"]["attribution"] = _seconds(lambda: attributed(V3))
    print(render(document))
    if arguments.out:
        arguments.out.write_text(json.dumps(document, indent=1), encoding="utf-8")


def identities() -> list[dict[str, float | str]]:
    """Published TFLOP/s and MFU of the published step, from the closed forms."""
    cost = resolve(V3).question.cost
    causal, noncausal = model_flops(cost)
    per_gpu = 15360 * 4096 / V3_PUBLISHED["step_s"] / 2048
    rows = [
        ("TFLOP/s, attention in full", noncausal * per_gpu / 1e12, 432.0),
        ("TFLOP/s, causal", causal * per_gpu / 1e12, 385.0),
        ("MFU, attention in full", noncausal * per_gpu / 989e12, 0.4373),
        ("MFU, causal", causal * per_gpu / 989e12, 0.3894),
    ]
    return [{"what": what, "ours": ours, "published": theirs} for what, ours, theirs in rows]


def closed_forms() -> list[dict[str, Any]]:
    found = []
    for name in bubbles.NAMES:
        agree = [np.isclose(executed, closed, rtol=1e-9, atol=1e-9) for _, executed, closed in bubbles.cases(name)]
        found.append({"schedule": name, "agree": int(np.sum(agree)), "cases": int(np.size(agree))})
    return found


def against_published(rates: str) -> list[dict[str, Any]]:
    found = simulate(resolve(Request(cluster=V3.cluster, preset=V3.preset, rates=rates)).question)  # type: ignore[arg-type]
    rows = []
    for name, published in V3_PUBLISHED.items():
        low, high = found.range(name)
        rows.append({"metric": name, "simulated": found.value(name), "low": low, "high": high, "published": published})
    return rows


def others() -> list[dict[str, Any]]:
    rows = []
    for what, (request, published) in OTHERS.items():
        found = simulate(resolve(request).question)
        low, high = found.range("gpu_hours_per_trillion_tokens")
        value = found.value("gpu_hours_per_trillion_tokens")
        rows.append({"metric": what, "simulated": value, "low": low, "high": high, "published": published})
    return rows


def _seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def render(document: dict[str, Any]) -> str:
    lines = ["| identity | ours | published | off |", "|---|---|---|---|"]
    for row in document["identities"]:
        off = row["ours"] / row["published"] - 1
        lines.append(f"| {row['what']} | {row['ours']:.5g} | {row['published']:.5g} | {off:+.3%} |")
    lines += ["", "| schedule | cases equal to the closed form | of |", "|---|---|---|"]
    lines += [f"| {row['schedule']} | {row['agree']} | {row['cases']} |" for row in document["bubbles"]]
    compared = [(f"V3, rates {rates}: {row['metric']}", row) for rates, rows in document["v3"].items() for row in rows]
    compared += [(row["metric"], row) for row in document["others"]]
    lines += ["", "| | simulated | 5 to 95 % | published | off |", "|---|---|---|---|---|"]
    for what, row in compared:
        off = row["simulated"] / row["published"] - 1
        lines.append(
            f"| {what} | {row['simulated']:.4g} | {row['low']:.4g} to {row['high']:.4g} | {row['published']:.4g} "
            f"| {off:+.1%} |"
        )
    lines += ["", *(f"{what}: {seconds:.2f} s" for what, seconds in document["seconds"].items())]
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--without-attribution", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
