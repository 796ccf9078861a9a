"""Controls: switches whose effect is known, run as further components of a study to check its intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from ablate.components.component import Alternative, Component
from ablate.spec.run import Spec

SPIKED_FLOPS_SHARE = 0.25  # of a variant's own FLOPs, executed and charged: the FLOP channel is ln(1.25) exactly
MASKED_TARGET_SHARE = 0.2  # of the main head's targets, not learned from: a loss in tokens, none in FLOPs


def _control(name: str, title: str, field: str, on: Any, off: Any) -> Component:
    def turn(spec: Spec, value: Any) -> Spec:
        return replace(spec, trainer=replace(spec.trainer, control=replace(spec.trainer.control, **{field: value})))

    return Component(
        name=name,
        title=title,
        source="a control of this program",
        alternatives=(Alternative(name="off", summary="without the control"),),
        on=lambda spec: turn(spec, on),
        off=lambda spec, alternative: turn(spec, off),
        modifies=("control",),
        affects=("calibration",),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """What a control is known to be worth: ln of the cost without it over the cost with it, by channel.

    tokens: the least and the most that it can be.
    """

    tokens: tuple[float, float]
    flops_per_token: float
    why: str


KNOWN = {
    "placebo": Known(tokens=(0.0, 0.0), flops_per_token=0.0, why="it changes nothing"),
    "spike-flops": Known(
        tokens=(0.0, 0.0),
        flops_per_token=-math.log1p(SPIKED_FLOPS_SHARE),
        why="its FLOPs are charged and teach nothing",
    ),
    "spike-targets": Known(
        tokens=(math.log1p(-MASKED_TARGET_SHARE), 0.0),
        flops_per_token=0.0,
        why="a fifth of the targets is not learned from, which costs something and at most a fifth of the tokens",
    ),
}

CONTROLS: tuple[Component, ...] = (
    _control("placebo", "a switch that changes nothing", "placebo", True, False),
    _control("spike-flops", "a quarter more FLOPs that do nothing", "extra_flops_share", SPIKED_FLOPS_SHARE, 0.0),
    _control("spike-targets", "a fifth of the targets masked", "masked_target_share", MASKED_TARGET_SHARE, 0.0),
)
