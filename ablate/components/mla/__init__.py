"""Multi-head latent attention against grouped-query attention."""

from ablate.components.component import Alternative, Component
from ablate.components.mla.spec import GroupedQueryAttention, LatentAttention, off, on

COMPONENT = Component(
    name="mla",
    title="multi-head latent attention",
    source="DeepSeek-V3, arXiv:2412.19437, section 2.1.1",
    alternatives=(
        Alternative(name="gqa", summary="grouped-query attention with the preset's key-value heads, as in Llama 3"),
        Alternative(name="mha", summary="multi-head attention: a key-value head for every query head"),
        Alternative(name="mqa", summary="multi-query attention: one key-value head"),
    ),
    on=on,
    off=off,
    owns=("attention",),
    nodes={"attention": (LatentAttention, GroupedQueryAttention)},
    settings=LatentAttention,
    affects=("loss", "speed", "KV bytes"),
)
