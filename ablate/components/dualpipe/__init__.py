"""DualPipe against other pipeline schedules."""

from ablate.components.component import Alternative, Component
from ablate.components.dualpipe.spec import Bidirectional, Interleaved, Settings, Straight, Vshaped, off, on

COMPONENT = Component(
    name="dualpipe",
    title="bidirectional pipeline schedule",
    source="DeepSeek-V3, arXiv:2412.19437, section 3.2.1",
    alternatives=(
        Alternative(name="1f1b", summary="one forward, one backward in turn on each rank"),
        Alternative(name="gpipe", summary="all forwards, then all backwards"),
        Alternative(name="interleaved", summary="1f1b with several stages a rank"),
        Alternative(name="zb1p", summary="1f1b with weight gradients in the gaps (ZB-H1)"),
        Alternative(name="zbv", summary="stages in a V, weight gradients in the gaps (ZB-V)"),
        Alternative(name="dualpipev", summary="DualPipe cut in half: stages in a V, no weights twice"),
    ),
    on=on,
    off=off,
    owns=("pipeline",),
    nodes={"pipeline": (Bidirectional, Straight, Interleaved, Vshaped)},
    settings=Settings,
    axis="pipeline",
    affects=("speed", "memory"),
)
