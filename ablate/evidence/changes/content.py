"""Everything that is known of which change mattered, as one value that sentences, tables and pages lay out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate.cluster.hardware import cluster as cluster_named
from ablate.cluster.layout import SYSTEM, published_layout
from ablate.components.component import Component
from ablate.components.registry import component
from ablate.components.variants import Variant
from ablate.evidence.changes.equality import EqualityShown, equality
from ablate.evidence.changes.exact import Exact, exact
from ablate.evidence.changes.measured import Measured, Together, by_size, of_study
from ablate.evidence.changes.reported import Reported, reported
from ablate.evidence.changes.simulated import Simulated, Speeds, speeds
from ablate.evidence.changes.studies import StudyFacts, check_apart, read_study, shipped_studies
from ablate.evidence.changes.trend import Reach, Trend, reach, trend
from ablate.evidence.gap import identity, path, totals, totals_names
from ablate.presets import preset as preset_named
from ablate.presets import preset_file
from ablate.spec.run import Preset

# In the order of the rows: what shapes the model, how it is trained, how it lies on a cluster, what it reads.
CHANGES = ("mla", "moe", "aux-free", "mtp", "fp8", "dualpipe", "alltoall", "distill")
DENSE_PEER = "llama3-405b"  # of about equal quality, with published totals: what the cost is held against


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One change by every kind of evidence; what is not known is None, and its kind says why."""

    component: Component
    exact: Exact
    simulated: Simulated | None
    measured: tuple[Measured, ...]  # everything, in the order of the studies
    sizes: tuple[Measured, ...]  # one a size, from small to large
    trend: Trend
    reported: Reported
    equality: EqualityShown | None

    @property
    def name(self) -> str:
        return self.component.name

    @property
    def neutral(self) -> bool:
        """Whether it can move no loss, which is shown by equality and not estimated."""
        return self.name in SYSTEM

    @property
    def largest(self) -> Measured | None:
        """At the largest size."""
        return self.sizes[-1] if self.sizes else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """GPU hours against a dense model of published totals: the identity of `gap`, and the path of FLOPs per token."""

    first: str
    second: str
    first_title: str
    second_title: str
    identity: Mapping[str, Any]
    path: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerContent:
    """What `answer` says. Its texts are plain, and whoever renders them escapes them."""

    preset: str
    preset_title: str
    cost: Cost | None
    speeds: Speeds
    changes: tuple[Change, ...]
    studies: tuple[StudyFacts, ...]  # whose effects are shown
    silent: tuple[StudyFacts, ...]  # that give no effect yet: their runs do not determine one
    calibrations: tuple[StudyFacts, ...]  # studies with controls
    together: tuple[Together, ...]  # of each design, from small to large
    reach: Reach | None

    @property
    def moving(self) -> tuple[Change, ...]:
        """The changes that can move the loss."""
        return tuple(change for change in self.changes if not change.neutral)


def build(preset: str, cluster: str, folders: Sequence[Path] = (), equalities: Path | None = None) -> AnswerContent:
    """The answer for a preset on a cluster from studies; none given: those that are shipped.

    ValueError for a preset, a cluster or a study that there is not.
    """
    base = preset_file(Path(preset)) if preset.endswith(".toml") else preset_named(preset)
    machine, layout = cluster_named(cluster), published_layout(base.name)
    check_apart(folders)
    read = [read_study(folder) for folder in (folders or shipped_studies())]
    found = {facts.folder: of_study(facts, result) for facts, result in read if not facts.has_controls}
    own = [facts for facts, _ in read if not facts.has_controls]
    telling = {folder for folder, (effects, _) in found.items() if any(each.is_known for each in effects)}
    measured = [each for folder, (effects, _) in found.items() for each in effects if folder in telling]
    fast = speeds(preset, cluster)
    changes = []
    for name in CHANGES:
        of_it = tuple(each for each in measured if each.component == name)
        sizes = by_size(of_it)
        neutral = name in SYSTEM
        changes.append(
            Change(
                component=component(name), exact=exact(base, name, machine, layout), simulated=fast.changes.get(name),
                measured=of_it, sizes=sizes, trend=trend(sizes), equality=equality(name, equalities),
                reported=reported(name, sizes[-1] if sizes else None, neutral=neutral),
            )
        )  # fmt: skip
    wholes = sorted((whole for _, whole in found.values() if whole is not None), key=lambda each: each.study.flops)
    return AnswerContent(
        preset=base.name, preset_title=base.title, cost=_cost(base), speeds=fast, changes=tuple(changes),
        studies=tuple(facts for facts in own if facts.folder in telling),
        silent=tuple(facts for facts in own if facts.folder not in telling),
        calibrations=tuple(facts for facts, _ in read if facts.has_controls), together=tuple(wholes),
        reach=reach([c.sizes for c in changes if not c.neutral], base.title, _training_flops(base)),
    )  # fmt: skip


def _training_flops(base: Preset) -> float:
    cost = Variant.full(base).resolve(base).model.cost(base.trainer.sequence_length)
    return float(base.n_tokens * cost.training_flops_per_token)


def _cost(base: Preset) -> Cost | None:
    """Against the dense peer, where totals of the preset are published."""
    if base.name not in totals_names() or base.name == DENSE_PEER:
        return None
    a, b = totals(DENSE_PEER), totals(base.name)
    return Cost(
        first=DENSE_PEER, second=base.name, first_title=a.totals.title, second_title=b.totals.title,
        identity=identity(a, b), path=path(a, b),
    )  # fmt: skip
