"""Auxiliary-loss-free load balancing against auxiliary losses."""

from ablate.components.aux_free.spec import AuxiliaryLoss, BiasBalance, Settings, off, on
from ablate.components.component import Alternative, Component

COMPONENT = Component(
    name="aux-free",
    title="auxiliary-loss-free load balancing",
    source="DeepSeek-V3, arXiv:2412.19437, section 2.1.2; arXiv:2408.15664",
    alternatives=(
        Alternative(name="sequence-aux", summary="auxiliary loss over the experts' load in each sequence"),
        Alternative(name="batch-aux", summary="auxiliary loss over the load in the whole batch of an optimizer step"),
        Alternative(name="micro-batch-aux", summary="auxiliary loss over the load in a few sequences"),
        Alternative(name="none", summary="no balancing"),
    ),
    on=on,
    off=off,
    owns=("balance",),
    nodes={"balance": (BiasBalance, AuxiliaryLoss)},
    settings=Settings,
    requires=("moe",),
    affects=("loss", "balance"),
)
