"""The answer for people at a terminal: the sentences, the table as far as it fits, and where the page is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ablate.attribution.verdicts import NOT_RESOLVED
from ablate.evidence.changes.content import AnswerContent, Change
from ablate.evidence.changes.exact import CACHE, FLOPS
from ablate.evidence.changes.reported import AGREES, CANNOT_TELL, DISAGREES
from ablate.evidence.changes.sentences import factor
from ablate.quantities import NONE, number, scaled
from ablate.report.cleaning import clean
from ablate.report.fitting import Fitting
from ablate.report.which_change.page import Page

if TYPE_CHECKING:
    from rich.console import Group, RenderableType


SHORT = {AGREES: "agree", DISAGREES: "disagree", CANNOT_TELL: "open"}


def render(content: AnswerContent, page: Page, paths: Sequence[Path]) -> Group:
    """What `answer` prints."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(page.title, style="bold"), Text(page.scale, style="dim"), Text()]
    for sentence in page.sentences:
        lead, colon, rest = sentence.partition(":")
        parts += [Text.assemble((lead + colon, "bold"), rest), Text()]
    largest = [change.largest for change in content.changes if change.largest]
    at = f" at {scaled(max(each.parameters for each in largest))}" if largest else ""
    title = f"FLOPs and KV bytes exact, tokens/s simulated, tokens saved measured{at}"
    heads = ("Change", "FLOPs/token", "KV bytes", "tokens/s", "saved", "interval", "verdict", "papers")
    parts.append(Fitting(title, heads, map(_row, content.changes), 1))
    parts += [Text(f"Page: {clean(path)}", overflow="fold") for path in paths]
    return Group(*parts)


def _row(change: Change) -> tuple[str, ...]:
    """Cells without spaces that a narrow terminal could break at."""
    multiples = []
    for name in (FLOPS, CACHE):
        found = change.exact.figure(name)
        multiples.append(NONE if found is None or found.multiple is None else f"{number(found.multiple, 2)}×")
    fast = change.simulated
    simulated = NONE if fast is None else f"{number(fast.factor.estimate, 2)}×" if fast.resolved else "unresolved"
    papers = SHORT[change.reported.agreement]
    cost = None if change.largest is None else change.largest.tokens
    if cost is None or cost.estimate is None:
        return change.name, *multiples, simulated, NONE, NONE, "neutral" if change.neutral else "unknown", papers
    saved = factor(cost.estimate)
    ends = f"{number(math.exp(cost.low), 2)}–{number(math.exp(cost.high), 2)}"
    verdict = "unresolved" if cost.verdict == NOT_RESOLVED else cost.verdict.partition(",")[0].partition(" ")[0]
    return change.name, *multiples, simulated, saved, ends, verdict, papers
