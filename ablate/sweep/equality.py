"""What a study on several ranks does first: shows that schedules and transports change neither loss nor gradients."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from ablate.components.component import ON
from ablate.components.registry import COMPONENTS
from ablate.components.variants import Variant, on_ranks
from ablate.files import replace_file, sealed
from ablate.presets import preset
from ablate.runs.plan import NamedVariant
from ablate.runs.store import EQUALITY
from ablate.spec.ranks import Ranks

if TYPE_CHECKING:
    from ablate.parallel.equality import Case, Equality

LENGTH = 16  # tokens of a sequence
MOST_RANKS = 8  # of a check, which this machine starts whatever runs the study


def check_equality(named: Sequence[NamedVariant], say: Callable[[str], None], folder: Path) -> None:
    """Compare each of a study's variants, at the size of the preset nano, on its ranks with one process.

    In float64, where nothing may differ but the order of sums. What came of it is kept in the study's folder, for its
    report. ValueError if something differs: the study does not run.
    """
    say("checking that the ranks compute what one process computes (float64, a small model of each variant)")
    # In a process of its own, which loads torch, while this one stays able to fork.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(equalities, cases(named)).result()
    for each in found:
        say(sentence(each))
    said = [each.facts() | {"sentence": sentence(each)} for each in found]
    replace_file(folder / EQUALITY, sealed({"cases": said}), "what the check of the ranks found")
    if wrong := [f"{each.variant} ({each.what})" for each in found if not each.holds]:
        raise ValueError(
            f"on these ranks {', '.join(wrong)} does not compute what one process computes; nothing was run: "
            "report it with the lines above, or leave --ranks out"
        )


def cases(named: Sequence[NamedVariant]) -> list[Case]:
    """A case for each variant of a study, on its ranks, with as few micro-batches as its schedule takes."""
    from ablate.parallel.equality import Case

    found = []
    for variant in named:
        small = on_ranks(preset("nano"), few(variant.spec.trainer.ranks))
        # What the text is concerns no rank; logits of a teacher would need one.
        levels = {name: level for name, level in variant.levels.items() if not _of_text(name)}
        spec = Variant.of(levels).resolve(small)
        ranks = spec.trainer.ranks
        found.append(
            Case(
                schedule=schedule_name(variant),
                variant=variant.name,
                model=spec.model,
                text=spec.data.text,
                pipeline=spec.trainer.pipeline,
                transport=spec.trainer.transport,
                recompute=variant.spec.trainer.recompute,
                ranks=ranks,
                n_micro_batches=2 * ranks.pipeline + (2 if ranks.pipeline > 1 else 0),
                length=LENGTH,
            )
        )
    return found


def few(ranks: Ranks) -> Ranks:
    """A layout with the same axes on at most as many processes as one machine bears: the code that runs is the same.

    Experts that lay on several nodes of several ranks still do.
    """
    if ranks.world <= MOST_RANKS:
        return ranks
    expert, node = (4, 2) if ranks.n_nodes > 1 < ranks.per_node else (min(2, ranks.expert), min(2, ranks.per_node))
    data = expert if expert > 1 else min(2, ranks.data)
    return Ranks(pipeline=min(2, ranks.pipeline), data=data, expert=expert, node=node)


def _of_text(name: str) -> bool:
    return any(c.name == name and "text" in c.slots for c in COMPONENTS)


def schedule_name(variant: NamedVariant) -> str:
    """What the variant's pipeline does: the level of the component that owns its slot."""
    owner = next(c for c in COMPONENTS if "pipeline" in c.owns)
    level = variant.levels[owner.name]
    return owner.name if level == ON else level


def equalities(cases: Sequence[Case]) -> list[Equality]:
    """All cases in one start of their ranks."""
    from ablate.parallel.equality import compare_all
    from ablate.parallel.launch import launch

    found: list[Equality] = launch(compare_all, cases[0].ranks.world, list(cases))[0]
    return found


def sentence(found: Equality) -> str:
    """A case in one line."""
    told = "equal" if found.holds else "NOT EQUAL"
    losses = "bit for bit" if found.losses_exact else f"within {found.loss_error:.0e}"
    counts = "bit for bit" if found.counts_exact else "DIFFERENT"
    live = f"; live chunks {', '.join(map(str, found.peak_live_chunks))}" if len(found.peak_live_chunks) > 1 else ""
    return (
        f"{found.what} in {found.variant} on {found.ranks}: {told}; expert counts {counts}, losses {losses}, "
        f"{found.n_gradients_exact} of {found.n_gradients} gradients bit for bit, the others within "
        f"{found.gradient_error:.0e}{live}"
    )
