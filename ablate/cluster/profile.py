"""Rates of a measured chunk: how often slower each class of work was than the published kernel rates predict."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from ablate.cluster.hardware import Cluster
from ablate.cluster.inputs import Draws, Input, draw
from ablate.cluster.network import Network, dispatch_bytes
from ablate.cluster.rates import CLASSES, Rates, Times
from ablate.cluster.work import Routed, Share, Work, model_of
from ablate.components.variants import Variant
from ablate.documents import read_toml
from ablate.errors import nearest
from ablate.presets import preset
from ablate.spec.cost import BF16_BYTES
from ablate.spec.decoding import decode
from ablate.spec.ranges import Count, Depth, Positive, checked

FOLDER = "profiles"
# What of the assumptions a corrected class replaces.
REPLACES: Mapping[str, tuple[str, ...]] = {
    "fp8_product": ("fp8_product", "fp8_product_half"),
    "bf16_product": ("bf16_product", "bf16_product_half"),
    "attention_forward": ("attention_forward", "attention_forward_half"),
    "attention_backward": ("attention_backward", "attention_backward_half"),
    "elementwise": ("elementwise_bandwidth",),
    "quantise": ("quantise_bandwidth",),
    "dispatch": (),
    "combine": ("contention",),
}


@checked("profile.busy")
@dataclass(frozen=True, kw_only=True, slots=True)
class Busy:
    """Seconds of the products' streams: summed over kernels, and as long as any was running."""

    kernels: Positive
    union: Positive


@checked("profile")
@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """Seconds by class of one overlapped pair of chunks: the forward and the backward pass of `n_layers` of the layers
    that a preset repeats, for one micro-batch. spread: half of the range that is taken around them, as a share.
    """

    title: str
    devices: tuple[str, ...]
    preset: str
    n_layers: Depth
    sequences: Count
    sequence_length: Count
    expert: Count
    compute_sms: Count
    spread: Positive
    seconds: Mapping[str, Positive]
    busy: Busy

    def __post_init__(self) -> None:
        for name in self.seconds:
            if name not in CLASSES:
                raise ValueError(f"profile.seconds.{name} is no class of work; {nearest(name, CLASSES)}")


def profile(name: str) -> Profile:
    """A shipped profile by name, or one from a TOML file."""
    shipped = resources.files(__package__) / FOLDER / f"{name}.toml"
    if shipped.is_file():
        return decode(Profile, tomllib.loads(shipped.read_text(encoding="utf-8")), "")
    known = [file.name.removesuffix(".toml") for file in (resources.files(__package__) / FOLDER).iterdir()]
    if not name.endswith(".toml"):
        raise ValueError(f"unknown profile {name!r}; {nearest(name, known)}")
    return decode(Profile, read_toml(Path(name), "the profile", "give a TOML file with the fields of a profile"), name)


def predicted(measured: Profile, cluster: Cluster, draws: Draws) -> Times:
    """What the rates give for the profile's work."""
    spec = Variant.full(preset(measured.preset)).resolve(preset(measured.preset)).model
    model = model_of(spec)
    share = Share(
        tokens=measured.sequences * measured.sequence_length, sequence_length=measured.sequence_length, tensor=1,
        expert=measured.expert, low_precision=model.low_precision,
    )  # fmt: skip
    work = Work()
    for _ in range(measured.n_layers):
        work = work + model.layer(len(model.layers) - 1, share)
    rates = Rates(cluster=cluster, draws=draws, low_precision=model.low_precision)
    times: Times = {}
    for part in (
        rates.forward(work, measured.compute_sms),
        rates.input_gradient(work, measured.compute_sms, "selective"),
        rates.weight_gradient(work, measured.compute_sms),
        _transfers(work.routed, measured, cluster, draws),
    ):
        for kind, seconds in part.items():
            times[kind] = times[kind] + seconds if kind in times else seconds
    return times


def _transfers(routed: tuple[Routed, ...], measured: Profile, cluster: Cluster, draws: Draws) -> Times:
    """A dispatch and a combine in each pass of every layer."""
    network = Network(cluster=cluster, draws=draws)
    sizes = {"dispatch": dispatch_bytes(True), "combine": float(BF16_BYTES)}
    return {
        kind: sum(2 * network.all_to_all(each, "two-hop", measured.expert, size) for each in routed)  # type: ignore[misc]
        for kind, size in sizes.items()
    }


def corrections(
    measured: Profile, cluster: Cluster, inputs: Mapping[str, Input]
) -> tuple[dict[str, Input], dict[str, str]]:
    """The inputs with a factor for each measured class, and class -> its factor's name.

    What a factor replaces keeps its central value and loses its range. Products of two streams overlap, so that each
    counts for its share of the time in which any ran. ValueError where the profile is of other devices.
    """
    if cluster.device not in measured.devices:
        raise ValueError(
            f"the profile is of {', '.join(measured.devices)}, and the cluster has {cluster.device}; "
            "give a profile of this device, or --rates published"
        )
    central = {
        name: Input(value=item.value, low=item.value, high=item.value, label=item.label, source=item.source)
        for name, item in inputs.items()
    }
    balanced = Input(value=1.0, low=1.0, high=1.0, label="exact", source="the profile forces balance")
    times = predicted(measured, cluster, draw(central | {"routing_imbalance": balanced}, n_samples=0))
    found, names = dict(inputs), {}
    for kind, seconds in measured.seconds.items():
        overlapping = 1.0 if kind in ("dispatch", "combine") else measured.busy.union / measured.busy.kernels
        factor = seconds * overlapping / float(times[kind][0])
        names[kind] = f"measured_{kind}"
        found[names[kind]] = Input(
            value=factor, low=factor * (1 - measured.spread), high=factor * (1 + measured.spread),
            label="measured elsewhere", unit="of the predicted seconds", source=measured.title,
        )  # fmt: skip
        for replaced in REPLACES.get(kind, (kind,)):
            found[replaced] = central[replaced]
    return found, names
