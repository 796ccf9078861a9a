"""FP8 training against training in BF16."""

from ablate.components.component import Alternative, Component
from ablate.components.fp8.spec import Fp8Linear, Settings, StandardLinear, off, on

COMPONENT = Component(
    name="fp8",
    title="fine-grained FP8 training",
    source="DeepSeek-V3, arXiv:2412.19437, section 3.3",
    alternatives=(
        Alternative(name="bf16", summary="matrix products in the run's own dtype (BF16, or float32 in small runs)"),
        Alternative(name="tensorwise", summary="the same products in E4M3 with one scale for a whole tensor"),
        Alternative(name="gradient-blocks", summary="gradients share scales in 128 x 128 blocks, as weights do"),
    ),
    on=on,
    off=off,
    owns=("linear",),
    nodes={"linear": (Fp8Linear, StandardLinear)},
    settings=Settings,
    affects=("loss", "speed", "memory"),
)
