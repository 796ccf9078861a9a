"""How long a rank waits in an optimizer step, in the closed forms that were published for each schedule."""

from __future__ import annotations

from ablate.schedules.action import Schedule


def closed_form(schedule: Schedule, forward_s: float, backward_s: float, weight_s: float) -> float | None:
    """Seconds that a rank waits, where all stages are equal and transfers take no time. None: nothing was published.

    forward_s, backward_s, weight_s: of one micro-batch at one stage; the backward is the whole one, of which the weight
    part is a part. Sources: 1F1B, ZB1P, DualPipe and DualPipeV arXiv:2412.19437, table 2, and deepseek-ai/DualPipe, a
    pair taking as long as its two; GPipe waits as long as 1F1B; interleaved arXiv:2104.04473, section 2.2. DualPipe's
    hold where a forward takes as long as the input part of a backward.
    """
    n, f, b, w = schedule.n_ranks, forward_s, backward_s, weight_s
    forms = {
        "gpipe": (n - 1) * (f + b),
        "1f1b": (n - 1) * (f + b),
        "interleaved": (n - 1) * (f + b),
        "zb1p": (n - 1) * (f + b - 2 * w),
        "dualpipe": (n // 2 - 1) * (f + b + b - 3 * w),
        "dualpipev": (n - 1) * (f + b + b - 3 * w),
    }
    return forms.get(schedule.name)
