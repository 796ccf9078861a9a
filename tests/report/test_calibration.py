"""What is known of a control is found again, or the report says that it is not."""

import math

import fake_study as fake
import pytest

from ablate.report import build

CONTROLS = ("placebo", "spike-flops", "spike-targets")


def loss(tokens: float, seed: int, saved: float) -> float:
    x = math.log(saved * tokens / 300_000)
    return 3.2 + 0.01 * seed - 0.3 * x + 0.05 * x * x


def study(tmp_path, worth: dict[str, float]):
    """All eight variants of the controls, whose tokens are worth `worth`; runs of one variant differ by nothing."""
    variants, records = [], []
    for mask in range(8):
        on = [name for i, name in enumerate(CONTROLS) if mask >> i & 1]
        levels = fake.FULL | {name: "on" if name in on else "off" for name in CONTROLS}
        name, tokens = "+".join(on) or "none", 300_000
        flops = round(tokens * 6e6 * (1.25 if "spike-flops" in on else 1))
        variants.append(fake.variant(name, levels, range(3)) | {"n_tokens": tokens, "flops": flops})
        factor = math.prod(worth[each] for each in on)
        for seed in range(3):
            saved = factor * (1 + 0.002 * math.sin(7 * mask + 5 * seed))
            points = tuple({"step": 300 * s, "n_tokens": tokens * s, "nats_per_token": loss(tokens * s, seed, saved)}
                           for s in (0.25, 0.5))  # fmt: skip
            made = fake.record(name, seed, loss(tokens, seed, saved), levels, branches=points)
            metrics = {**made.metrics, "n_tokens": float(tokens)}
            records.append(fake.changed([made], name, seed, metrics=metrics)[0])
    plan = fake.plan(variants[::-1], seeds=[0, 1, 2], design="lattice")
    return build(fake.write_study(tmp_path / "s", plan, records)).calibration


@pytest.mark.parametrize(
    ("worth", "recovered"),
    [
        ({"placebo": 1.0, "spike-flops": 1.0, "spike-targets": 0.9}, ["yes", "yes", "yes"]),
        ({"placebo": 1.05, "spike-flops": 0.95, "spike-targets": 0.7}, ["no", "no", "no"]),
        ({"placebo": 1.0, "spike-flops": 1.0, "spike-targets": 1.0}, ["yes", "yes", "no"]),
    ],
)
def test_what_is_known_is_found_again_or_not(tmp_path, worth, recovered):
    table = study(tmp_path, worth)
    assert [row[0] for row in table.rows] == list(CONTROLS)
    assert [row[1] for row in table.rows] == recovered
    assert [row[5] for row in table.rows] == ["1.00×", "0.80×", "1.00×"]
