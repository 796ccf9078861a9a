"""Do the intervals of a few pairs hold what many pairs say? On real runs, not simulated ones.

    dsv3-ablate run --disable mtp --seeds 50 --out results/many
    python benchmarks/interval_coverage.py results/many --pairs 5 --out reports/coverage-cpu

Takes the finished study of one comparison apart into groups of --pairs seeds, estimates each group alone as a report
does (gain in tokens and in training FLOPs, nats at equal FLOPs and tokens), and counts the intervals that hold the
estimate of all the other seeds. That estimate has an error of its own, so a right interval holds it a little more
seldom than its level says; the expected share is printed beside the observed one. Disjoint groups are independent;
groups drawn at random overlap and only smooth the count.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from ablate.attribution.study.compare import compare
from ablate.attribution.study.gains import component_gains
from ablate.runs.plan import Plan, read_plan
from ablate.runs.record import RunRecord
from ablate.runs.store import Store

Intervals = Mapping[str, tuple[float, float, float]]  # quantity -> estimate, low, high
UNITS = {"tokens": "log tokens", "flops": "log training FLOPs",
         "nats at equal flops": "nats", "nats at equal tokens": "nats"}  # fmt: skip


def main() -> None:
    arguments = _arguments()
    store = Store(arguments.folder)
    plan, records = read_plan(arguments.folder / "plan.json"), list(store)
    seeds = [s for s in plan.seeds if all(_finished(records, v.run_ids[v.seeds.index(s)]) for v in plan.variants)]
    if len(seeds) < 2 * arguments.pairs + 2:
        raise SystemExit(f"{arguments.folder} has {len(seeds)} finished pairs; give a study with more, or less --pairs")
    disjoint = _count(plan, records, seeds, list(_disjoint(seeds, arguments.pairs)), arguments.pairs)
    generator = np.random.default_rng(0)
    drawn = [generator.choice(seeds, arguments.pairs, replace=False).tolist() for _ in range(arguments.draws)]
    random = _count(plan, records, seeds, drawn, arguments.pairs)
    document = {
        "question": plan.question, "preset": plan.preset, "n_pairs": len(seeds), "pairs_of_a_group": arguments.pairs,
        "confidence": plan.confidence, "expected": _expected(plan.confidence, arguments.pairs, len(seeds)),
        "all_pairs": {name: dict(zip(("estimate", "low", "high"), found, strict=True))
                      for name, found in _estimate(plan, records, seeds).items()},
        "disjoint": disjoint, "random": random,
    }  # fmt: skip
    text = _text(document)
    print(text)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "coverage.json").write_text(json.dumps(document, indent=1) + "\n")
        (arguments.out / "README.md").write_text(text)


def _finished(records: Sequence[RunRecord], identity: str) -> bool:
    return any(r.run_id == identity and r.status == "finished" for r in records)


def _disjoint(seeds: Sequence[int], n: int) -> Iterator[list[int]]:
    for start in range(0, len(seeds) - n + 1, n):
        yield list(seeds[start : start + n])


def _estimate(plan: Plan, records: Sequence[RunRecord], seeds: Sequence[int]) -> Intervals:
    """What a report of these seeds alone would say."""
    variants = tuple(
        replace(v, seeds=tuple(seeds), run_ids=tuple(v.run_ids[v.seeds.index(s)] for s in seeds)) for v in plan.variants
    )
    part = replace(plan, seeds=tuple(seeds), variants=variants)
    kept = {identity for v in variants for identity in v.run_ids}
    ((gain,), why) = component_gains(compare(part, [r for r in records if r.run_id in kept], []))
    found: dict[str, Any] = {"tokens": gain.tokens, "flops": gain.flops}
    found |= {f"nats at equal {match}": gain.matched[match] for match in ("flops", "tokens")}
    return {name: (f.estimate, f.low, f.high) for name, f in found.items() if f.estimate is not None and not why}


def _count(
    plan: Plan, records: Sequence[RunRecord], seeds: Sequence[int], groups: Sequence[Sequence[int]], n: int
) -> dict[str, dict[str, float]]:
    held: dict[str, list[bool]] = {}
    widths: dict[str, list[float]] = {}
    for group in groups:
        own = _estimate(plan, records, sorted(group))
        others = _estimate(plan, records, [s for s in seeds if s not in set(group)])
        for name, (_, low, high) in own.items():
            held.setdefault(name, []).append(low <= others[name][0] <= high)
            widths.setdefault(name, []).append((high - low) / 2)
    return {name: {"groups": len(found), "held": sum(found), "mean_half_width": float(np.mean(widths[name]))}
            for name, found in held.items()}  # fmt: skip


def _expected(confidence: float, n: int, n_all: int) -> float:
    """The share of right t-intervals that hold the mean of the other seeds, which has an error of its own."""
    critical = stats.t.ppf((1 + confidence) / 2, n - 1) / math.sqrt(1 + n / (n_all - n))
    return float(2 * stats.t.cdf(critical, n - 1) - 1)


def _text(document: Mapping[str, Any]) -> str:
    lines = [
        "# Do intervals of a few pairs hold what many say?", "",
        f"{document['question']} Preset {document['preset']}, {document['n_pairs']} pairs of seeds; groups of "
        f"{document['pairs_of_a_group']}, each against the estimate of all the others. A right interval would hold it "
        f"in {document['expected']:.1%} of groups.", "",
        "| quantity | unit | all pairs | 95 % interval | half-width of a group | disjoint groups | drawn groups |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, (estimate, low, high) in ((k, v.values()) for k, v in document["all_pairs"].items()):
        apart, drawn = document["disjoint"][name], document["random"][name]
        lines.append(
            f"| {name} | {UNITS[name]} | {estimate:+.4f} | {low:+.4f} to {high:+.4f} | {apart['mean_half_width']:.4f} "
            f"| {apart['held']} of {apart['groups']} | {drawn['held'] / drawn['groups']:.1%} of {drawn['groups']} |"
        )
    return "\n".join([*lines, "", "Made by `python benchmarks/interval_coverage.py`.", ""])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
