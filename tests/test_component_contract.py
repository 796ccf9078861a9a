"""The laws of a switch that concern specifications, over the whole registry."""

from __future__ import annotations

import dataclasses
import itertools
import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from variants import FULL, NANO, cells, dependants, every_variant, levels, means_something, name_of, neighbours, spec_of

from ablate.components.codec import decode_model
from ablate.components.component import ON, Component
from ablate.components.controls import CONTROLS
from ablate.components.listing import card
from ablate.components.registry import COMPONENTS, NAMES, component
from ablate.components.variants import Variant
from ablate.presets import SECTIONS, preset, preset_file
from ablate.spec.decoding import canonical, encode
from ablate.spec.run import Spec

HEADINGS = (
    "What it does",
    'What "off" means and why that is the fair alternative',
    "Source, equation by equation",
    "Where we differ from the paper",
    "Cost",
    "What would show that it does not help",
    "Limits",
)

each_component = pytest.mark.parametrize("chosen", COMPONENTS, ids=NAMES)
each_neighbour = pytest.mark.parametrize("variant", neighbours(), ids=name_of)


def places(chosen: Component) -> list[Spec]:
    """Specifications beside which the component means something."""
    return [spec_of(v) for v in cells() if not v.missing(chosen)]


def related(a: Component, b: Component) -> bool:
    """Whether the order matters: one requires the other, replaces what the other modifies, or says that it does."""
    required = a.name in dependants(b.name) or b.name in dependants(a.name)
    replaced = {*a.owns} & {*b.modifies} or {*b.owns} & {*a.modifies}
    said = {*a.modifies} & {*b.modifies} and (a.name in b.does_not_commute_with or b.name in a.does_not_commute_with)
    return bool(required or replaced or said)


def changed(a: Spec, b: Spec) -> set[str]:
    """Slots in which two specifications differ; `preset`, which is none, where their presets do."""
    parts = [(a.model, b.model), (a.data, b.data), (a.trainer, b.trainer)]
    found = {f.name for x, y in parts for f in dataclasses.fields(x) if getattr(x, f.name) != getattr(y, f.name)}
    return found | ({"preset"} if a.preset != b.preset else set())


@each_component
def test_law_1_a_level_is_another_specification(chosen: Component) -> None:
    for spec in places(chosen):
        results = [chosen.apply(level, spec) for level in levels(chosen)]
        assert all(a != b for a, b in itertools.combinations(results, 2))


@each_component
def test_law_2_twice_is_once(chosen: Component) -> None:
    for spec, level in itertools.product(places(chosen), levels(chosen)):
        once = chosen.apply(level, spec)
        assert chosen.apply(level, once) == once


@each_component
def test_law_3_on_leaves_no_residue(chosen: Component) -> None:
    for spec, a in itertools.product(places(chosen), chosen.alternatives):
        assert chosen.off(chosen.on(spec), a.name) == chosen.off(spec, a.name)
        # Off takes dependants along where they mean nothing without it, so only others come back as they were.
        if not dependants(chosen.name):
            assert chosen.on(chosen.off(spec, a.name)) == chosen.on(spec)


@pytest.mark.parametrize(
    ("a", "b"),
    [(a, b) for a, b in itertools.combinations(COMPONENTS, 2) if not related(a, b)],
    ids=lambda c: c.name,
)
def test_law_4_independent_components_commute(a: Component, b: Component) -> None:
    pairs = list(itertools.product(levels(a), levels(b)))
    assert len(pairs) >= 4
    for spec in [s for s in places(a) if s in places(b)]:
        for level_a, level_b in pairs:
            assert a.apply(level_a, b.apply(level_b, spec)) == b.apply(level_b, a.apply(level_a, spec))


@pytest.mark.parametrize("chosen", [*COMPONENTS, *CONTROLS], ids=lambda c: c.name)
def test_levels_change_the_slots_that_are_declared_and_no_others(chosen: Component) -> None:
    found: set[str] = set()
    for spec, level in itertools.product(places(chosen), levels(chosen)):
        found |= changed(spec, chosen.apply(level, spec))
    assert found == set(chosen.slots)


def needs_a_section(chosen: Component) -> bool:
    """Whether a preset must say something of a component: its settings have fields without a default."""
    fields = [] if chosen.settings is None else dataclasses.fields(chosen.settings)
    missing = dataclasses.MISSING
    return any(f.default is missing and f.default_factory is missing for f in fields)


@pytest.mark.parametrize("chosen", [c for c in COMPONENTS if needs_a_section(c)], ids=lambda c: c.name)
def test_on_without_sizes_names_the_preset_and_the_section(chosen: Component) -> None:
    less = {name: settings for name, settings in NANO.settings.items() if name != chosen.name}
    for spec in places(chosen):
        with pytest.raises(ValueError, match=re.escape(f"preset {NANO.name} ") + rf".*no section \[{chosen.name}\]"):
            chosen.on(dataclasses.replace(spec, preset=dataclasses.replace(NANO, settings=less)))


def test_law_5_distinct_variants_have_distinct_specifications() -> None:
    found: dict[Any, str] = {}
    for variant in every_variant():
        spec = spec_of(variant)
        name = name_of(variant)
        assert found.setdefault((spec.model, spec.data, spec.trainer), name) == name


@pytest.mark.parametrize("chosen", [c for c in COMPONENTS if c.requires], ids=lambda c: c.name)
def test_law_6_a_level_that_means_nothing_is_refused_with_a_sentence(chosen: Component) -> None:
    for requirement in chosen.requires:
        for alternative in component(requirement).alternatives:
            others = {d: component(d).default_alternative for d in dependants(requirement) if d != chosen.name}
            variant = FULL | {requirement: alternative.name} | others
            if alternative.keeps_dependants:
                variant.resolve(NANO)
                continue
            with pytest.raises(ValueError, match=f"{chosen.name}.*{requirement}") as caught:
                variant.resolve(NANO)
            assert len(str(caught.value)) > 60
            # The functions refuse it as well, for callers who do not come through a variant.
            orphan = FULL.without([requirement], {requirement: alternative.name}).resolve(NANO)
            with pytest.raises(ValueError, match=chosen.name):
                chosen.on(orphan)
            for other in chosen.alternatives[1:]:
                with pytest.raises(ValueError, match=other.name):
                    chosen.off(orphan, other.name)
            assert chosen.off(orphan, chosen.default_alternative) == orphan


def test_disabling_takes_dependants_along_at_their_default() -> None:
    for chosen in COMPONENTS:
        for alternative in chosen.alternatives:
            others = {name: component(name).alternatives[-1].name for name in dependants(chosen.name)}
            variant = FULL.without([chosen.name], {chosen.name: alternative.name} | others)
            assert means_something(variant), variant
            differing = {name for name in NAMES if variant[name] != FULL[name]}
            gone = set() if alternative.keeps_dependants else set(dependants(chosen.name))
            assert differing == {chosen.name} | gone


def test_feasible_cells_are_those_with_prerequisites() -> None:
    expected = sum(
        all(name in chosen or not any(r == name for c in chosen for r in component(c).requires) for name in NAMES)
        for n in range(len(NAMES) + 1)
        for chosen in itertools.combinations(NAMES, n)
    )
    assert len(cells()) == expected


def test_the_ends_are_feasible_and_differ_in_everything() -> None:
    none = Variant.none()
    assert not none.unmet
    assert not FULL.unmet
    assert all(none[name] != FULL[name] == ON for name in NAMES), "the recipe of these tests has every component"


@each_neighbour
def test_a_specification_survives_its_own_file(variant: Variant) -> None:
    model = spec_of(variant).model
    data = encode(model)
    assert decode_model(data) == model
    assert canonical(data) == canonical(encode(decode_model(data)))


@each_component
def test_names_a_component_gives(chosen: Component) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", chosen.name), "what a command line and a file can name"
    assert chosen.name not in SECTIONS, "a preset has a section of that name"
    names = [a.name for a in chosen.alternatives]
    assert names, "off needs a meaning"
    assert len(set(names)) == len(names)
    assert ON not in names
    assert all(a.summary for a in chosen.alternatives)
    assert chosen.affects
    assert "arXiv:" in chosen.source
    assert all(NAMES.index(r) < NAMES.index(chosen.name) for r in chosen.requires), "prerequisites come first"
    with pytest.raises(ValueError, match=f"has no alternative 'nothing'.*{names[0]}"):
        chosen.alternative("nothing")


@each_component
def test_method_card(chosen: Component) -> None:
    lines = card(chosen.name).splitlines()
    assert len(lines) <= 80
    assert max(map(len, lines)) <= 160
    headings = [line.lstrip("# ").strip() for line in lines if line.startswith("#")]
    positions = [next((i for i, h in enumerate(headings) if h.startswith(wanted)), None) for wanted in HEADINGS]
    assert None not in positions, [w for w, p in zip(HEADINGS, positions, strict=True) if p is None]
    assert positions == sorted(positions)
    assert "arXiv:" in "".join(lines)


def test_a_preset_file_of_version_1_means_what_it_meant(tmp_path: Path) -> None:
    text = (resources.files("ablate.presets") / "nano.toml").read_text(encoding="utf-8")
    lines = [
        line
        for line in text.splitlines()
        if not line.startswith(("recipe", "eps =", "[norm]", "[optimizer]", "weight_decay"))
    ]
    old = (
        "\n".join(lines)
        .replace("[model]", "[model]\nnorm_eps = 1e-6")
        .replace("[trainer]", "[trainer]\nweight_decay = 0.1")
    )
    (tmp_path / "nano.toml").write_text(old)
    assert preset_file(tmp_path / "nano.toml") == preset("nano")
