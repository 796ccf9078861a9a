"""What the ranks of a study did in a few steps: the section's value, the sentence above its chart, and its tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ablate.attribution.study.compare import StudyResult, VariantResult
from ablate.cluster.measured import Measured, measure
from ablate.components.codec import decode_run
from ablate.parallel.layout import schedule_of
from ablate.quantities import NONE, listed, milliseconds, percent, plural, short, signed
from ablate.report.cleaning import clean
from ablate.report.names import emulated
from ablate.report.tables.table import Columns, Table, make, text
from ablate.runs.store import Store
from ablate.runs.timelines import read_timeline
from ablate.schedules.action import COMPUTE
from ablate.schedules.timeline import BEHIND, NAMES, Step, Timeline

WITHIN = 0.05  # the simulated step is held to the measured one where each rank has a core or a device of its own
DIGITS = 3
BEHIND_IN_WORDS = {"G": "in the all-reduce (waiting for other ranks included)", "O": "in the optimizer"}
EQUAL_STAGES = 1.05  # the longest stage over the mean, up to which stages count as equal


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """A variant's first run that was recorded."""

    variant: str
    timeline: Timeline
    measured: Measured
    emulated: bool  # part of its arithmetic

    @property
    def name(self) -> str:
        schedule = self.measured.schedule
        return clean(f"{self.variant} ({schedule.name})" if schedule.n_ranks > 1 else self.variant)

    @property
    def step(self) -> Step:
        """The recorded step whose length is the median."""
        return sorted(self.timeline.steps, key=length_s)[len(self.timeline.steps) // 2]

    @property
    def shares_cores(self) -> bool:
        """Whether there were more ranks than cores."""
        return self.timeline.clock == "host" and self.timeline.n_ranks > self.timeline.n_cores

    @property
    def others(self) -> float:
        """Processes that wanted a core beside the ranks, on average."""
        return max(0.0, self.timeline.load - self.timeline.n_ranks)


def length_s(step: Step) -> float:
    """Seconds from a step's first action on any rank to its last."""
    every = [span for spans in step.ranks for span in spans]
    return max(s.end_s for s in every) - min(s.start_s for s in every)


def recorded(store: Store, result: StudyResult) -> tuple[Recorded, ...]:
    """Of each variant that has one. ValueError for a timeline that is torn, altered or of another schedule."""
    found = (_of(v, store) for v in result.variants)
    return tuple(each for each in found if each is not None)


def _of(v: VariantResult, store: Store) -> Recorded | None:
    for run in v.finished:
        path = store.timeline_file(run.run_id)
        if run.record is not None and path.is_file():
            timeline, trainer = read_timeline(path), decode_run(run.record.spec).trainer
            measured = measure(timeline, schedule_of(trainer))
            return Recorded(variant=v.name, timeline=timeline, measured=measured, emulated=emulated(v))
    return None


def sentence(found: Sequence[Recorded]) -> str:
    """The bubble of each variant, the smallest first, and what it would be in the simulator; "" without any."""
    if not found:
        return ""
    ranked = sorted(found, key=lambda each: each.measured.bubble_share)
    shares = [f"{percent(each.measured.bubble_share, DIGITS)} of a step under {each.name}" for each in ranked]
    simulated = listed(percent(each.measured.simulated.bubble_share, DIGITS) for each in ranked)
    return f"A rank has no work for {listed(shares)}; simulated with the measured seconds of each action: {simulated}."


def notes(found: Sequence[Recorded]) -> Iterator[str]:
    """What was recorded where, and what the figures do not say."""
    for each in found:
        timeline, numbers = each.timeline, [step.number for step in each.timeline.steps]
        device = "" if timeline.clock == "host" else ", by events of the device"
        change = "shorter" if each.measured.unevenness < 0 else "longer"
        where = f"{plural(timeline.n_ranks, 'rank')} on {plural(timeline.n_cores, 'core')}"
        said = (
            f"{each.name}: steps {numbers[0]} to {numbers[-1]} of run {timeline.run_id}{device}; {where}, load "
            f"{short(timeline.load, DIGITS)}, clocks within {milliseconds(timeline.clock_error_s)} ms. "
            f"The simulated step is {_within(each)}; that equal actions do not last equally long makes it "
            f"{percent(abs(each.measured.unevenness), DIGITS)} {change}."
        )
        if each.measured.behind:
            parts = [f"{milliseconds(s)} ms {BEHIND_IN_WORDS[kind]}" for kind, s in each.measured.behind.items()]
            said += f" Behind the schedule a rank spends {listed(parts)}; nothing hides them."
        if each.emulated:
            said += " Part of the arithmetic is emulated; its seconds say nothing of hardware that has it."
        if each.measured.imbalance > EQUAL_STAGES and each.measured.closed_form_s is not None:
            said += (
                f" The longest stage takes {short(each.measured.imbalance, DIGITS)} times the mean of all, and closed "
                "forms hold for equal stages."
            )
        yield said


def _within(each: Recorded) -> str:
    off = abs(each.measured.simulated_difference)
    said = f"{percent(off, DIGITS)} off the measured one"
    if each.shares_cores:
        return f"{said}; ranks shared cores, which no schedule foresees"
    if off <= WITHIN:
        return f"{said}, within {percent(WITHIN)}"
    busy = "; by the load other processes wanted the cores too" if each.others >= 1 else ""
    return f"{said}, more than {percent(WITHIN)}{busy}"


def bubbles(found: Sequence[Recorded]) -> Table:
    """Measured, closed form and simulated, of each variant."""
    columns: Columns = [text("Variant"), "Step of the pipeline, ms", "Bubble, measured", "Bubble, closed form",
                        "Bubble, simulated", "Simulated step against measured", "Communication exposed",
                        "Live chunks at most"]  # fmt: skip
    rows = []
    for each in found:
        m = each.measured
        rows.append([
            each.name,
            milliseconds(m.step_s),
            percent(m.bubble_share, DIGITS),
            percent(m.closed_form_share, DIGITS),
            percent(m.simulated.bubble_share, DIGITS),
            f"{signed(100 * m.simulated_difference, 1)} %",
            percent(m.lost.exposed_s / m.step_s, DIGITS),
            ", ".join(map(str, dict.fromkeys(m.peak_live_chunks))),
        ])  # fmt: skip
    return make("A step's time on the ranks", columns, rows)


def seconds(found: Sequence[Recorded]) -> Table:
    """Of one action at each stage; and of a rank in a step, where `Stage` is empty."""
    kinds = [kind for kind in COMPUTE if any(kind in each.measured.by_kind for each in found)]
    columns: Columns = [text("Variant"), text("Stage"), *(f"{NAMES[k]}, ms" for k in kinds)]
    columns += ["dispatch, ms", "combine, ms", "transfers, ms", "no work, ms"]
    behind = [kind for kind in BEHIND if any(kind in each.measured.behind for each in found)]
    columns += [f"{NAMES[kind]}, ms" for kind in behind]
    rows = []
    for each in found:
        m = each.measured
        for stage in range(m.schedule.n_stages):
            parts = [_ms(m.parts.get((kind, stage))) for kind in kinds]
            rows.append([each.name, str(stage), *parts, *[NONE] * (4 + len(behind))])
        lost = (m.lost.dispatch_s, m.lost.combine_s, m.lost.transfer_s, m.lost.bubble_s - m.lost.transfer_s)
        rest = [*map(_ms, lost), *(_ms(m.behind.get(kind)) for kind in behind)]
        rows.append([each.name, "all, of a rank in a step", *(_ms(m.by_kind.get(k)) for k in kinds), *rest])
    return make("Milliseconds of an action at each stage, and of a rank in a step", columns, rows)


def _ms(value: float | None) -> str:
    return NONE if value is None else milliseconds(value)


def document(found: Sequence[Recorded]) -> list[dict[str, Any]]:
    """The same as plain data; seconds, shares of a rank's time in a step."""
    return [_document(each) for each in found]


def _document(each: Recorded) -> dict[str, Any]:
    m, timeline = each.measured, each.timeline
    return {
        "variant": each.variant,
        "run_id": timeline.run_id,
        "schedule": m.schedule.name,
        "steps": [step.number for step in timeline.steps],
        "ranks": timeline.n_ranks,
        "cores": timeline.n_cores,
        "load": timeline.load,
        "clock": timeline.clock,
        "clock_error_s": timeline.clock_error_s,
        "step_s": m.step_s,
        "bubble_share": m.bubble_share,
        "closed_form_share": m.closed_form_share,
        "simulated": asdict(m.simulated) | {"bubble_share": m.simulated.bubble_share},
        "lost": asdict(m.lost) | {"exposed_s": m.lost.exposed_s},
        "seconds_by_kind": dict(m.by_kind),
        "behind_s": dict(m.behind),
        "seconds_of_an_action": [{"kind": k, "stage": s, "seconds": x} for (k, s), x in sorted(m.parts.items())],
        "peak_live_chunks": list(m.peak_live_chunks),
        "emulated": each.emulated,
    }
