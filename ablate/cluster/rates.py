"""Seconds of one rank's work from rates: of kernels published elsewhere, measured here, or of a measured chunk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ablate.cluster.hardware import Cluster
from ablate.cluster.inputs import Draws, Floats
from ablate.cluster.work import Attention, Product, Work
from ablate.spec.cost import BF16_BYTES

TILE = 128  # rows and columns that a multiprocessor multiplies at a time
BACKWARD_ATTENTION = 2.5  # forward passes that rates of attention's backward pass are counted in
CLASSES = (
    "fp8_product",
    "fp8_grouped",
    "fp8_weight_gradient",
    "bf16_product",
    "bf16_grouped",
    "bf16_weight_gradient",
    "attention_forward",
    "attention_backward",
    "elementwise",
    "quantise",
    "dispatch",
    "combine",
)
Times = dict[str, Floats]  # class -> seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Rates of a cluster's device under all draws. Class -> how often slower than predicted, where it was measured."""

    cluster: Cluster
    draws: Draws
    low_precision: bool
    corrections: Mapping[str, str] = field(default_factory=dict)  # class -> name of the input that corrects it

    def forward(self, work: Work, sms: int) -> Times:
        """Seconds by class of a forward pass, products on `sms` multiprocessors."""
        times: Times = {}
        for product in work.products:
            self._add(times, self._class(product), self._product(product, sms))
            if self._low(product) and product.new_input:
                self._add(
                    times,
                    "quantise",
                    self.seconds_of_bytes((BF16_BYTES + 1) * product.rows * product.inner, "quantise"),
                )
        for core in work.attention:
            self._add(times, "attention_forward", self.attention_seconds(core, "attention_forward", sms))
        self._add(times, "elementwise", self.seconds_of_bytes(work.elementwise_bytes))
        return self._corrected(times)

    def input_gradient(self, work: Work, sms: int, recompute: str) -> Times:
        """Seconds by class of the backward pass to the input, what is recomputed for it included."""
        times: Times = {}
        for product in work.products:
            turned = Product(
                name=product.name, rows=product.rows, inner=product.outer, outer=product.inner, groups=product.groups,
                linear=product.linear,
            )  # fmt: skip
            self._add(times, self._class(product), self._product(turned, sms))
            if recompute == "selective" and product.recomputed:
                self._add(times, self._class(product), self._product(product, sms))
            if self._low(product):  # the output's gradient in tiles along both sides
                self._add(
                    times,
                    "quantise",
                    self.seconds_of_bytes((BF16_BYTES + 2) * product.rows * product.outer, "quantise"),
                )
        for core in work.attention:
            self._add(times, "attention_backward", self.attention_seconds(core, "attention_backward", sms))
        again = work.recomputed_bytes if recompute == "selective" else 0.0
        self._add(times, "elementwise", self.seconds_of_bytes(2 * work.elementwise_bytes + again))
        times = self._corrected(times)
        if recompute == "full":
            for name, seconds in self.forward(work, sms).items():
                self._add(times, name, seconds)
        return times

    def weight_gradient(self, work: Work, sms: int) -> Times:
        """Seconds by class of the products that give the weights' gradients."""
        times: Times = {}
        for product in work.products:
            per_group = max(1, math.ceil(product.rows / product.groups))
            turned = Product(
                name=product.name, rows=product.inner * product.groups, inner=per_group, outer=product.outer,
                groups=product.groups, linear=product.linear,
            )  # fmt: skip
            kind = "fp8_weight_gradient" if self._low(product) else "bf16_weight_gradient"
            self._add(times, kind, self.product_seconds(turned, kind, sms))
            if self._low(product):  # the kept input again, in tiles along its rows
                self._add(times, "quantise", self.seconds_of_bytes(2.0 * product.rows * product.inner, "quantise"))
        return self._corrected(times)

    def seconds_of_bytes(self, n_bytes: float, kind: str = "elementwise") -> Floats:
        """Work on so many bytes, as the optimizer's, uncorrected."""
        return np.asarray(n_bytes / (self.draws[f"{kind}_bandwidth"] * self.cluster.memory_bytes_per_s))

    def _low(self, product: Product) -> bool:
        return self.low_precision and product.linear

    def _class(self, product: Product) -> str:
        precision = "fp8" if self._low(product) else "bf16"
        return f"{precision}_grouped" if product.groups > 1 else f"{precision}_product"

    def _product(self, product: Product, sms: int) -> Floats:
        return self.product_seconds(product, self._class(product), sms)

    def product_seconds(self, product: Product, kind: str, sms: int) -> Floats:
        """Of one product, uncorrected: waves of tiles over the multiprocessors, each as long as its inner loop.

        It is never below the time that its bytes take.
        """
        precision = kind.partition("_")[0]
        share = self.draws[kind]
        if kind.endswith("_grouped"):
            share = share * self.draws[f"{precision}_product"]
        low = precision == "fp8"
        peak = self.cluster.fp8_flops_per_s if low else self.cluster.bf16_flops_per_s
        rows = product.rows / product.groups
        tiles = product.groups * math.ceil(rows / TILE) * math.ceil(product.outer / TILE)
        waves = math.ceil(tiles / sms)
        depth = product.inner + self.draws[f"{precision}_product_half"]
        loops = waves * 2.0 * TILE * TILE * depth / (share * peak / self.cluster.n_sms)
        size = 1 if low else BF16_BYTES
        moved = product.groups * product.inner * product.outer * size + product.rows * (
            product.inner * size + product.outer * BF16_BYTES
        )
        seconds = np.maximum(loops, moved / self.cluster.memory_bytes_per_s)
        return np.asarray(seconds * self.draws["routing_imbalance"] if product.groups > 1 else seconds)

    def attention_seconds(self, core: Attention, kind: str, sms: int) -> Floats:
        """Of one pass, uncorrected: a longer sequence is nearer to the rate's limit."""
        passes = BACKWARD_ATTENTION if kind == "attention_backward" else 1.0
        share = self.draws[kind] * core.length / (core.length + self.draws[f"{kind}_half"])
        peak = self.cluster.bf16_flops_per_s * sms / self.cluster.n_sms
        return np.asarray(core.flops * passes / (share * peak))

    def _corrected(self, times: Times) -> Times:
        return {
            kind: seconds * self.draws[self.corrections[kind]] if kind in self.corrections else seconds
            for kind, seconds in times.items()
        }

    @staticmethod
    def _add(times: Times, kind: str, seconds: Floats) -> None:
        times[kind] = times[kind] + seconds if kind in times else seconds


def summed(times: Times, like: Floats) -> Floats:
    """All classes together; zeros where there is nothing."""
    return np.asarray(sum(times.values(), np.zeros_like(like)))
