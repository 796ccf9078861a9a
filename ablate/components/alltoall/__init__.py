"""Two hops between expert ranks against one."""

from ablate.components.alltoall.spec import Deduplicated, Flat, TwoHop, off, on
from ablate.components.component import Alternative, Component

COMPONENT = Component(
    name="alltoall",
    title="two-hop all-to-all between expert ranks",
    source="DeepSeek-V3, arXiv:2412.19437, section 3.2.2",
    alternatives=(
        Alternative(name="flat", summary="every chosen expert's copy of a token straight to its rank"),
        Alternative(name="deduplicated", summary="one copy of a token for each rank, straight to it"),
    ),
    on=on,
    off=off,
    owns=("transport",),
    nodes={"transport": (TwoHop, Flat, Deduplicated)},
    requires=("moe",),
    affects=("speed",),
    axis="expert",
)
