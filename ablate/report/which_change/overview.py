"""The table of the answer: a row a change, a column a kind of evidence, side by side and never multiplied."""

from __future__ import annotations

from ablate.evidence.changes.content import AnswerContent, Change
from ablate.evidence.changes.exact import CACHE, DENSE, FLOPS, PARAMETERS, Figure
from ablate.evidence.changes.measured import LossEffect, Measured
from ablate.evidence.changes.reported import Direction
from ablate.evidence.changes.sentences import saving, speed
from ablate.evidence.simulation import RESOLVABLE
from ablate.quantities import NONE, listed, number, percent, scaled, signed, signed_between
from ablate.report.tables.table import Columns, Table, text
from ablate.report.which_change.links import make_linked

UNCHANGED = 5e-4  # of a multiple: below, it is called unchanged


def overview(content: AnswerContent) -> Table:
    """A row a change, a column a kind of evidence."""
    columns: Columns = [
        text("Change, instead of"),
        text(f"At the size of {content.preset}: multiple of what it is without (exact)"),
        text(f"Tokens a second, {content.speeds.cluster_title} (simulated)"),
        text("Tokens saved for the same loss (measured here)"),
        text("Papers, on the loss (published)"),
        text("Ours beside theirs"),
    ]
    rows = [
        [name(change), exact_words(change), simulated_words(change, content), measured_words(change),
         papers_words(change), f"{change.reported.agreement}: {change.reported.why}"]
        for change in content.changes
    ]  # fmt: skip
    note = (
        "The kinds of evidence are not comparable and are never multiplied. Simulated: each change's Owen-precedence "
        f"value with 5 to 95 % over the simulator's inputs; nothing is resolved below {percent(RESOLVABLE)}. Measured: "
        "above 1 is a saving, 95 % intervals, verdicts beyond 2 % with Holm's correction over a study's components."
    )
    return make_linked("Each change, by every kind of evidence", columns, rows, note)


def compact(content: AnswerContent) -> Table:
    """The same in few words, for a README."""
    sizes = sorted({c.largest.parameters for c in content.moving if c.largest is not None})
    at = f"measured at {' to '.join(map(scaled, dict.fromkeys((sizes[0], sizes[-1]))))}" if sizes else "measured here"
    columns: Columns = [
        text("change"), "FLOPs per token, exact", "parameters, exact", "KV bytes, exact",
        "tokens a second, simulated", f"tokens saved, {at}", text("papers on the loss"), text("agree?"),
    ]  # fmt: skip
    rows = [
        [name(change), _arithmetic(change), *(_short(change.exact.figure(figure)) for figure in (PARAMETERS, CACHE)),
         NONE if change.simulated is None else _resolved(change), _saved(change),
         ", ".join(f"{change.reported.count(way)} {word}" for way, word in WAYS if change.reported.count(way)) or NONE,
         change.reported.agreement]
        for change in content.changes
    ]  # fmt: skip
    return make_linked("Each change", columns, rows)


def _arithmetic(change: Change) -> str:
    """FLOPs per token, of experts also against a dense model of as many parameters."""
    dense, own = change.exact.figure(DENSE), _short(change.exact.figure(FLOPS))
    return own if dense is None else f"{own}; {number(dense.multiple, 3)}× a dense model as large"


def _short(found: Figure | None) -> str:
    if found is None or found.multiple is None:
        return NONE
    return f"{number(found.multiple, 2 if found.multiple < 10 else 1)}×" if _differs(found) else "same"


def _resolved(change: Change) -> str:
    assert change.simulated is not None
    return speed(change.simulated.factor) if change.simulated.resolved else "not resolved"


def _saved(change: Change) -> str:
    if change.neutral:
        shown = change.equality is not None and change.equality.holds
        return "loss equal, shown" if shown else "loss equal by design"
    cost = None if change.largest is None else change.largest.tokens
    return "not measured" if cost is None else f"{saving(cost)}, {cost.verdict}"


def name(change: Change) -> str:
    """The change with what off means."""
    return f"{change.name}, instead of {change.component.default_alternative}"


def exact_words(change: Change) -> str:
    """What differs, as multiples; nothing where nothing does."""
    if change.exact.reason:
        return f"not known: {change.exact.reason}"
    found = [_multiple(f) for f in (*change.exact.figures, *change.exact.further) if _differs(f)]
    if not found:
        return "no part of the model: nothing changes" if change.exact.by_construction else "nothing changes"
    if change.exact.by_construction:
        return f"the model is the same; {listed(found)}"
    return listed(found)


def _differs(found: Figure) -> bool:
    return found.multiple is not None and abs(found.multiple - 1) >= UNCHANGED


def _multiple(found: Figure) -> str:
    assert found.multiple is not None
    if found.name == DENSE:
        return f"{number(found.multiple, 3)}× the FLOPs per token of a dense model as large"
    return f"{number(found.multiple, 2)}× {found.title}"


def simulated_words(change: Change, content: AnswerContent) -> str:
    """The factor with its range, or why there is none."""
    if change.simulated is None:
        if content.speeds.reason:
            return f"not simulated: {content.speeds.reason}"
        return "no part of a step" if change.exact.by_construction else f"not in the recipe of {content.preset}"
    return f"{speed(change.simulated.factor)}{'' if change.simulated.resolved else ', not resolved'}"


def measured_words(change: Change) -> str:
    """The saving in tokens at each size with its verdict, or why there is none."""
    if change.neutral:
        return _equality_words(change)
    if not change.sizes:
        return "not measured"
    return "; ".join(_at_size(each) for each in change.sizes)


def _at_size(found: Measured) -> str:
    at = f"at {scaled(found.parameters)}"
    if found.tokens is None:
        return f"{at} no cost is known ({found.reason}); loss {loss(found.loss)}, {found.loss.verdict}"
    return f"{at}: {saving(found.tokens)}, {found.tokens.verdict}"


def _equality_words(change: Change) -> str:
    shown = change.equality
    if shown is None or shown.file is None:
        return "changes no loss by construction; no table of equality is kept here"
    if not shown.holds:
        return f"NOT shown to leave the loss alone: {shown.n_cases - shown.n_hold} of {shown.n_cases} cases differ"
    return f"changes no loss: {shown.n_cases} of {shown.n_cases} cases on ranks equal one process"


def loss(found: LossEffect) -> str:
    """The effect on the loss with its interval."""
    ends = "" if found.low is None else f" ({signed_between(found.low, found.high)})"
    return f"{signed(found.estimate)}{ends}" if found.estimate is not None else NONE


def papers_words(change: Change) -> str:
    """How many comparable findings point where, at which scales."""
    counted = change.reported.counted
    if not counted:
        return "nothing comparable"
    parts = [f"{change.reported.count(way)} {word}" for way, word in WAYS if change.reported.count(way)]
    scales = list(dict.fromkeys(each.finding.scale for each in counted))
    return f"{', '.join(parts)} ({'; '.join(scales)})"


WAYS: tuple[tuple[Direction, str], ...] = (("gain", "gain"), ("none", "within noise"), ("harm", "harm"))
