"""Fine-grained mixture of experts with shared experts against a dense feed-forward."""

from ablate.components.component import Alternative, Component
from ablate.components.moe.spec import RoutedExperts, SwiGLU, Unbalanced, off, on

COMPONENT = Component(
    name="moe",
    title="fine-grained experts with a shared expert",
    source="DeepSeek-V3, arXiv:2412.19437, section 2.1.2; DeepSeekMoE, arXiv:2401.06066",
    alternatives=(
        Alternative(name="dense", summary="dense SwiGLU of equal activated FLOPs"),
        Alternative(
            name="coarse",
            summary="few wide experts, top-2, none shared (GShard), of equal activated and total parameters",
            keeps_dependants=True,
        ),
        Alternative(
            name="no-shared",
            summary="the shared expert's width given to more routed experts",
            keeps_dependants=True,
        ),
        Alternative(name="unlimited", summary="no limit on the groups a token may reach", keeps_dependants=True),
    ),
    on=on,
    off=off,
    owns=("feed_forward",),
    modifies=("balance",),  # experts have a balance, if only none; a dense feed-forward has no slot for it
    nodes={"feed_forward": (RoutedExperts, SwiGLU), "balance": (Unbalanced,)},
    settings=RoutedExperts,
    affects=("loss", "speed", "memory"),
)
