"""What was held equal in a study, and where its numbers come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ablate.attribution.study.comparability import flatten
from ablate.attribution.study.compare import StudyResult
from ablate.quantities import budget, listed, percent, plural, scaled, short
from ablate.report.cleaning import clean
from ablate.report.names import matched

FIRST = ("device", "processor", "n_cores", "n_threads", "system", "python", "commit")  # of the environment
# What a study file calls a design -> how it is read.
DESIGNS = {
    "one": "one comparison, with against without",
    "leave-one-out": "leave-one-out: the full recipe against itself without each component",
    "add-one-in": "add-one-in: the dense end against itself with each component",
    "first-last": "first and last: each component added to none of the others, and left out of all",
    "lattice": "lattice: every feasible variant",
    "optimal": "optimal: the variants that tell the components' shares best, for the number of runs",
    "staged": "staged: the results are read at planned numbers of runs",
    "factorial": "factorial: every level of every factor",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """A line of a list: what is meant, and what it was."""

    label: str
    value: str


def _fact(label: object, value: object) -> Fact:
    return Fact(label=clean(label), value=clean(value))


def held_equal(result: StudyResult) -> tuple[Fact, ...]:
    """What all variants of the study have in common, as planned and as recorded."""
    plan = result.plan
    each = f"{budget(plan.budget, plan.match)} a run, rounded to whole optimizer steps"
    found = [
        _fact("Matched", f"{matched(result)}: {each}{_router(result)}"),
        _fact("Design", DESIGNS.get(plan.design.name, plan.design.name)),
        _fact("Preset", f"{plan.preset} ({plan.preset_title})" if plan.preset_title else plan.preset),
        _fact("Seeds", _seeds(result)),
        _fact("Tokens and order", _pairs(result)),
        _fact("Learning rate", _rates(result)),
        *_trainer(result),
        *_teachers(result),
        *(_fact(f"Corpus: {key.replace('_', ' ').replace('.', ', ')}", value) for key, value in _corpus(plan.corpus)),
        _fact("Margin", f"differences up to {short(plan.margin_nats)} nats per token count as negligible"),
    ]
    return tuple(found)


def _router(result: StudyResult) -> str:
    """How much of the arithmetic the convention of FLOPs per token leaves out, where it is not the same for all."""
    shares = {}
    for v in result.variants:
        flops = v.planned.cost.get("training_flops_per_token", 0)
        shares[v.name] = v.planned.cost.get("uncounted_router_flops_per_token", 0) / flops if flops else 0.0
    if max(shares.values()) == min(shares.values()):
        return ""
    most = max(shares, key=shares.__getitem__)
    return (
        f"; the main model's router products are not counted (the published convention), and are between "
        f"{percent(min(shares.values()), 2)} and {percent(shares[most], 2)} of a variant's FLOPs, most in {most}"
    )


def _corpus(corpus: Mapping[str, Any]) -> list[tuple[str, str]]:
    flat = flatten(corpus)
    return [(key, f"{int(value):,}" if value.isdecimal() and len(value) < 16 else value) for key, value in flat.items()]


def _seeds(result: StudyResult) -> str:
    """Which seeds variants share, as their finished runs have them."""
    found = {frozenset(run.seed for run in v.finished) for v in result.variants}
    planned = {frozenset(v.seeds) for v in result.plan.variants}
    seeds = listed(map(str, result.plan.seeds))
    if len(planned) > 1:
        return f"{seeds}, and not all for every variant: every run has its seed in the table of runs"
    return f"{seeds}, the same for every variant" + (", as planned; some runs are not finished" * (len(found) > 1))


def _pairs(result: StudyResult) -> str:
    """What runs of one seed have in common, checked run by run."""
    if result.pairing_breaks:
        runs = listed(f"{broken.variant} seed {broken.seed}" for broken in result.pairing_breaks)
        return f"not the same for {runs}: see the warnings"
    sharing = Counter(run.seed for run in result.runs if run.status == "finished")
    if max(sharing.values(), default=0) < 2:
        return "no two finished runs share a seed, so none are pairs"
    records = [run.record for v in result.variants for run in v.finished if run.record]
    unknown = sum(not (record.order_hash and record.initial_parameters) for record in records)
    if unknown:
        return f"not checked: {plural(unknown, 'finished run')} recorded no order of tokens or no initial values"
    texts = [planned.text for planned in result.plan.variants]
    tokens = "the same tokens in the same order"
    if any(text != texts[0] for text in texts):
        tokens = "the same raw text in the same order, where no teacher's text took its place,"
    return f"checked: runs of one seed saw {tokens} and began from the same values of shared parameters"


def _teachers(result: StudyResult) -> list[Fact]:
    """A fact for each text that a teacher wrote: whose it is, how much, what it cost, and which variants read it."""
    users: dict[str, list[str]] = {}
    for planned in result.plan.variants:
        if not planned.text:
            continue
        text = dict(planned.text)
        flops, charged = text.pop("teacher_writing_flops", None), text.pop("teacher_charged", False)
        said = ", ".join(str(value) for value in text.values())
        said += f"; {scaled(flops, 'FLOP')} to write" if flops else ""
        users.setdefault(f"{said}; {'charged to' if charged else 'not charged to'} the budget", []).append(planned.name)
    return [_fact(f"Teacher ({listed(names)})", said) for said, names in users.items()]


def _rates(result: StudyResult) -> str:
    rates = {v.planned.learning_rate for v in result.variants}
    if len(rates) == 1:
        return f"{short(rates.pop())}, shared by all variants"
    return "each variant's own: " + ", ".join(f"{v.name} {short(v.planned.learning_rate)}" for v in result.variants)


def _trainer(result: StudyResult) -> list[Fact]:
    """The settings of optimisation and evaluation that all finished runs share, and the names of those they do not."""
    records = [run.record for v in result.variants for run in v.finished if run.record]
    specs = [record.spec.get("trainer", {}) for record in records]
    if not specs:
        return []
    aside = {"learning_rate", "control"}  # the rate has a line of its own; controls are components
    same = {k: v for k, v in specs[0].items() if all(s.get(k) == v for s in specs) and k not in aside}
    found = []
    if {"n_held_out_windows", "sequence_length"} <= same.keys():
        found.append(_fact("Evaluation", _evaluation(same, records[0].judged)))
    aside |= {"n_held_out_windows", "n_curve_windows"}
    plain = flatten({k: v for k, v in same.items() if k not in aside})
    said = ", ".join(f"{key.replace('_', ' ').replace('.', ' ')} {value}" for key, value in plain.items())
    differing = sorted({k for s in specs for k in s} - set(same) - aside)
    found.append(_fact("Trainer", said))
    if differing:
        found.append(_fact("Not equal", f"trainer settings {listed(k.replace('_', ' ') for k in differing)}"))
    return found


def _evaluation(trainer: Mapping[str, Any], judged: Mapping[str, Mapping[str, int]]) -> str:
    """What of the held-out text was judged. Records of versions 1 and 2 do not say of how many documents."""
    if not judged:
        n, length = trainer["n_held_out_windows"], trainer["sequence_length"]
        return f"main-head loss on the first {n} held-out windows of {length} tokens, or all"
    sets = [
        f"{'the held-out text' if name == 'held_out' else name}: {plural(found['windows'], 'window')}, parts of "
        f"{plural(found['documents'], 'document')}"
        for name, found in sorted(judged.items(), key=lambda item: item[0] != "held_out")
    ]
    return (
        f"main-head loss at the end on windows of {trainer['sequence_length']} tokens, spread evenly over "
        f"{'; over '.join(sets)} (points of the curve before the end: {trainer['n_curve_windows']} of the windows)"
    )


def provenance(result: StudyResult) -> tuple[Fact, ...]:
    """The machine, versions, commit, backends and evidence of the finished runs."""
    records = [run.record for v in result.variants for run in v.finished if run.record]
    flat = [_commit_in_one(flatten(record.environment)) for record in records]
    statuses = Counter(run.status for run in result.runs)
    found = [_fact("Runs", ", ".join(plural(n, f"{status} run") for status, n in statuses.items()))]
    for key in sorted({k for each in flat for k in each}, key=_place):
        counts = Counter(each.get(key, "not recorded") for each in flat)
        value = next(iter(counts)) if len(counts) == 1 else "; ".join(f"{v} ({n} runs)" for v, n in counts.items())
        if value:
            found.append(_fact(key.replace("packages.", "").replace(".", " ").replace("_", " "), value))
    for v in result.variants:
        ran = ", ".join(f"{slot} {'/'.join(kinds)}" for slot, kinds in v.backends.items())
        if ran:
            found.append(_fact(f"Backends of {v.name}", ran))
        kinds = ", ".join(f"{group} {'/'.join(kinds)}" for group, kinds in v.evidence.items())
        if kinds:
            found.append(_fact(f"Evidence of {v.name}", kinds))
    return tuple(found)


def _commit_in_one(environment: dict[str, str]) -> dict[str, str]:
    """The environment with what is known of the commit in one line."""
    rest = {key: value for key, value in environment.items() if not key.startswith("commit.")}
    commit = environment.get("commit.hash", "")
    if not commit:
        return rest
    changed = environment.get("commit.dirty", "") == "True"
    digest = environment.get("commit.diff_hash", "")
    said = f" with uncommitted changes{f' of hash {digest}' if digest else ''}" if changed else ", nothing uncommitted"
    return rest | {"commit": f"{commit}{said}"}


def _place(key: str) -> tuple[int, str]:
    first = key.split(".")[0]
    return (FIRST.index(first) if first in FIRST else len(FIRST), key)
