"""Every number of every node and specification has its checked range, from a file and in Python alike."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from importlib import resources
from typing import Any, get_type_hints

import pytest
from variants import NANO, every_variant, spec_of

from ablate.components.codec import decode_spec, node_types
from ablate.components.registry import COMPONENTS
from ablate.presets import parse
from ablate.runs.study import Study
from ablate.spec.decoding import decode, encode
from ablate.spec.model import Init, ModelSpec
from ablate.spec.ranges import limits
from ablate.spec.run import Control, DataSpec, Preset, RunSpec, TrainerSpec

NODES = {cls for types in node_types().values() for cls in types.values()}
SETTINGS = {component.settings for component in COMPONENTS if component.settings is not None}
CLASSES: set[type] = NODES | SETTINGS | {Init, ModelSpec, Control, DataSpec, TrainerSpec, RunSpec, Preset}


def numbers(cls: type) -> list[str]:
    """The fields of a dataclass that hold a number, or none."""
    own = {f.name for f in dataclasses.fields(cls)}
    kinds = (int, float, int | None, float | None)
    return [name for name, hint in get_type_hints(cls).items() if name in own and hint in kinds]


@pytest.mark.parametrize("cls", sorted(CLASSES, key=str), ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_every_number_has_a_range(cls: type) -> None:
    assert not [name for name in numbers(cls) if name not in limits(cls)]


def examples() -> list[Any]:
    """An instance of every class that some variant holds."""
    found: dict[type, Any] = {type(value): value for value in NANO.settings.values()}
    for spec in map(spec_of, every_variant()):
        for value in (*spec.model.nodes.values(), spec.data.text, spec.trainer, spec.trainer.optimizer, spec.model):
            found.setdefault(type(value), value)
    run = spec_of(every_variant()[0]).run(corpus_hash="", seed=0, n_steps=10)
    found |= {type(value): value for value in (NANO, run, NANO.model.init, NANO.trainer.control, NANO.data)}
    return list(found.values())


@pytest.mark.parametrize("value", examples(), ids=lambda value: f"{type(value).__module__}.{type(value).__name__}")
def test_what_is_no_number_of_the_range_is_refused_in_a_sentence(value: Any) -> None:
    for name in numbers(type(value)):
        for wrong in (math.nan, math.inf, -math.inf, -1, "3", True):
            with pytest.raises(ValueError, match=rf"\.{name} is {wrong!r}; it must be (at least|above) [012]"):
                dataclasses.replace(value, **{name: wrong})


def test_a_word_that_is_none_of_the_choices_is_refused_in_python_too() -> None:
    node = spec_of(every_variant()[0]).model.linear
    with pytest.raises(ValueError, match=r"linear\.recipe is 'blockwize'; did you mean 'blockwise'"):
        dataclasses.replace(node, recipe="blockwize")


WRONG = {
    "aux-free": "bias_update_speed=0.0, sequence_loss_weight=-1.0, balance_loss_weight=-1.0, micro_batch_sequences=0",
    "mtp": "mtp_loss_weight=-0.3, final_mtp_loss_weight=inf, mtp_loss_weight=0.0",
    "moe": "route_scale=-1.0, route_scale=0.0, route_scale=nan, n_shared_experts=-1",
    "trainer": "gradient_clip=-1.0, learning_rate=inf, learning_rate=1e9, learning_rate=0.0, decay_share=-0.1",
    "optimizer": "weight_decay=inf, beta2=1.0, epsilon=0.0",
    "norm": "eps=0.0",
    "model": "rope_theta=inf, n_layers=0",
    "distill": "temperature=-1.0, logits_weight=-2.0, n_soft_tokens=0, share=0.0",
    "init": "scale=0.0",
    "data": "max_bytes=0",
    "mla": "kv_lora_rank=0",
    "attention": "n_kv_heads=0",
}


@pytest.mark.parametrize(("section", "line"), [(s, line) for s in WRONG for line in WRONG[s].split(", ")])
def test_a_coefficient_of_a_preset_is_refused_by_its_path(section: str, line: str) -> None:
    data = tomllib.loads((resources.files("ablate.presets") / "nano.toml").read_text(encoding="utf-8"))
    parse("nano", data)
    data[section] |= tomllib.loads(line)
    with pytest.raises(ValueError, match=rf"\b{section}\.{line.partition('=')[0]} is .*; it must be "):
        parse("nano", data)


@pytest.mark.parametrize(
    ("section", "value", "sentence"),
    [
        ("n_seeds", 0, r"preset\.n_seeds is 0; it must be at least 1"),
        ("n_seeds", 2.5, r"n_seeds is 2\.5"),
        ("n_tokens", math.inf, "n_tokens is inf"),
        ("data", {"source": "stdlib", "max_byte": 5}, r"data\.max_byte is unknown; did you mean 'max_bytes'"),
    ],
)
def test_the_other_numbers_of_a_preset_are_checked_too(section: str, value: Any, sentence: str) -> None:
    data = tomllib.loads((resources.files("ablate.presets") / "nano.toml").read_text(encoding="utf-8"))
    with pytest.raises(ValueError, match=sentence):
        parse("nano", data | {section: value})


def test_a_fault_inside_a_node_is_told_by_the_path_to_it() -> None:
    data = encode(NANO.model)
    data["norm"]["eps"] = 0.0
    with pytest.raises(ValueError, match=r"^model\.norm\.eps is 0\.0; it must be above 0$"):
        decode_spec(ModelSpec, data, "model")
    with pytest.raises(ValueError, match=r"^init\.scale is nan; it must be above 0$"):
        decode(Init, {"scheme": "normal", "scale": math.nan}, "init")


def test_a_budget_of_absurdly_many_steps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"n_steps is 10000000000000; it must be .* at most 1,000,000,000"):
        spec_of(every_variant()[0]).run(corpus_hash="", seed=0, n_steps=10**13)
    with pytest.raises(ValueError, match="budget is inf; it must be a finite number above 0"):
        Study(question="", preset="nano", budget=math.inf)


@pytest.mark.parametrize("change", [{"n_layers": 10**30}, {"dim": 10**30}, {"vocab_size": 10**16}])
def test_what_is_counted_has_an_end(change: dict[str, int]) -> None:
    """Beyond it a price would overflow, or go through layers for ever."""
    with pytest.raises(ValueError, match="and at most"):
        dataclasses.replace(NANO.model, **change)
