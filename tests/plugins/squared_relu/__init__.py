"""Squared ReLU in the first layers against SwiGLU: a component that is not DeepSeek-V3's, from a package of its own."""

from ablate.components.component import Alternative, Component
from squared_relu.spec import SquaredReLU, off, on

COMPONENT = Component(
    name="squared-relu",
    title="squared ReLU in the first feed-forwards",
    source="Primer, arXiv:2109.08668, section 4.2",
    alternatives=(Alternative(name="swiglu", summary="the preset's dense SwiGLU"),),
    on=on,
    off=off,
    owns=("first_feed_forward",),
    nodes={"first_feed_forward": (SquaredReLU,)},
    settings=SquaredReLU,
    affects=("loss", "speed"),
)
