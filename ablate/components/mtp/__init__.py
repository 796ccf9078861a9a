"""Multi-token prediction against next-token prediction."""

from ablate.components.component import Alternative, Component
from ablate.components.mtp.spec import MultiToken, NextToken, off, on

COMPONENT = Component(
    name="mtp",
    title="multi-token prediction",
    source="DeepSeek-V3, arXiv:2412.19437, section 2.2",
    alternatives=(
        Alternative(name="next-token", summary="the next token alone"),
        Alternative(
            name="parallel-heads", summary="independent heads on the trunk for the further tokens (Gloeckle et al.)"
        ),
    ),
    on=on,
    off=off,
    owns=("objective",),
    nodes={"objective": (MultiToken, NextToken)},
    settings=MultiToken,
    affects=("loss", "speed", "decoding acceptance"),
)
