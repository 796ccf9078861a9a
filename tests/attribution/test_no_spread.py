"""Effects without spread are a warning, but where a change is to leave every loss as it is."""

from __future__ import annotations

from ablate.attribution.study.comparability import no_spread
from ablate.attribution.verdicts import NO_EFFECT, Effect

LOSSES = {"full": {0: 4.0, 1: 4.1}, "-x": {0: 4.0, 1: 4.1}}


def flat(name: str) -> Effect:
    return Effect(
        name=name, unit="nats", estimate=0.0, low=0.0, high=0.0, n=2, verdict=NO_EFFECT, standard_error=0.0, df=1.0
    )


def test_only_a_change_that_may_move_the_loss_is_warned_of() -> None:
    (said,) = no_spread(LOSSES, [flat("mtp"), flat("alltoall"), flat("dualpipe")])
    assert said.startswith("mtp: the difference is the same in every repeat")
    assert list(no_spread(LOSSES, [flat("alltoall"), flat("dualpipe=1f1b")])) == []
