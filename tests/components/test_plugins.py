"""Components of other packages: registered by an entry point, listed, priced, lawful; a sentence where they are not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import make_dataclass, replace
from importlib import resources
from pathlib import Path

import pytest

from ablate.components.component import Component
from ablate.components.plugins import Plugin
from ablate.components.registry import COMPONENTS, NAMES, Registry, component
from ablate.components.variants import Variant
from ablate.presets import preset

ROOT = Path(__file__).parents[2]
PLUGINS = ROOT / "tests" / "plugins"
SECTION = "\n[squared-relu]\nhidden_dim = 48\n"


def install(folder: Path, value: str, distribution: str = "relu-for-ablate") -> dict[str, str]:
    """An environment in which a distribution with one entry point is installed."""
    info = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[dsv3_ablate.components]\nsquared-relu = {value}\n")
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (folder, PLUGINS, ROOT))), "COLUMNS": "200"}


def preset_with(folder: Path, section: str, *, in_recipe: bool) -> str:
    """A preset file: nano's with a section more, and perhaps with the component in its recipe."""
    text = (resources.files("ablate.presets") / "nano.toml").read_text(encoding="utf-8")
    if in_recipe:
        text = text.replace("recipe = [", 'recipe = ["squared-relu", ')
    path = folder / "with.toml"
    path.write_text(text + section)
    return str(path)


def call(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )


def ablate(environment: dict[str, str], *arguments: str) -> str:
    done = call(environment, "cli.py", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refusal(environment: dict[str, str], *arguments: str) -> str:
    done = call(environment, "cli.py", *arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    return line


def test_a_component_of_another_package_is_listed_and_priced(tmp_path: Path) -> None:
    environment = install(tmp_path, "squared_relu:COMPONENT")
    listed = ablate(environment, "components")
    assert listed.index("squared-relu: ") > max(listed.index(f"{name}: ") for name in NAMES), "read last"
    assert "It owns the slot first_feed_forward." in listed
    assert "It comes with the package relu-for-ablate." in listed
    assert ablate(environment, "components", "squared-relu").startswith("# squared-relu: ")

    sizes = preset_with(tmp_path, SECTION, in_recipe=False)
    full, on = (
        json.loads(ablate(environment, "account", "--preset", sizes, "--json", *more))
        for more in ((), ("--enable", "squared-relu"))
    )
    recipe = dict(Variant.full(preset("nano")).levels) | {"squared-relu": "swiglu"}
    assert full["variant"] == recipe, "full is the recipe's"
    assert on["variant"]["squared-relu"] == "on"
    none = Variant.none().resolve(preset("nano")).model
    saved = (3 * none.first_feed_forward.hidden_dim - 2 * 48) * none.dim * none.n_first_layers
    assert none.cost(32).summary()["total_parameters"] - on["total_parameters"] == saved > 0


def test_a_component_without_a_card_is_explained_by_its_paragraph(tmp_path: Path) -> None:
    (tmp_path / "lone.py").write_text("from squared_relu import COMPONENT\n")
    said = ablate(install(tmp_path, "lone:COMPONENT"), "components", "squared-relu")
    assert said.startswith("squared-relu: ")
    assert "Off means swiglu: the preset's dense SwiGLU." in said


def test_sizes_that_are_missing_are_named_with_preset_and_section(tmp_path: Path) -> None:
    environment = install(tmp_path, "squared_relu:COMPONENT")
    said = refusal(environment, "account", "--preset", "nano", "--enable", "squared-relu")
    assert "preset nano gives no sizes for squared-relu: it has no section [squared-relu]" in said
    said = refusal(environment, "account", "--preset", preset_with(tmp_path, "", in_recipe=True))
    assert "preset with: the recipe names squared-relu, and there is no section [squared-relu]" in said


@pytest.mark.parametrize(
    "laws", ["tests/test_component_contract.py", pytest.param("tests/test_component_models.py", marks=pytest.mark.slow)]
)
def test_a_component_of_another_package_keeps_the_laws(laws: str, tmp_path: Path) -> None:
    environment = install(tmp_path, "squared_relu:COMPONENT")
    # It is not in this recipe, so that the name of every variant that has it on begins with it.
    environment["CONTRACT_PRESET"] = preset_with(tmp_path, SECTION, in_recipe=False)
    done = call(
        environment,
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "squared-relu", laws),
    )
    assert done.returncode == 0, done.stdout[-3000:]


BROKEN = {
    "absent": ("no_such_module:COMPONENT", "cannot be imported (ModuleNotFoundError"),
    "no component": ("squared_relu:Component", "it is a type, not a Component"),
    "shadowing": ("ablate.components.mla:COMPONENT", "there is a component mla already"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_one_is_one_sentence_that_names_its_package(case: str, tmp_path: Path) -> None:
    value, message = BROKEN[case]
    environment = install(tmp_path, value, "broken-package")
    said = refusal(environment, "components")
    assert said.startswith("error: the package broken-package ")
    assert message in said
    assert "uninstall it" in said
    assert call(environment, "cli.py", "--help").returncode == 0
    assert call(environment, "cli.py", "components", "--help").returncode == 0


def node(kind: str) -> type:
    return make_dataclass("Node", [("kind", str, kind)])


def another(**fields: object) -> Component:
    """The component mtp under another name and without its slot, but for `fields`."""
    return replace(component("mtp"), **({"name": "another", "owns": (), "nodes": {}} | fields))


def test_a_component_that_does_not_fit_is_refused() -> None:
    assert Registry((*COMPONENTS, another())).names == (*NAMES, "another")
    mtp = component("mtp")
    for unfit, message in (
        (another(name="mtp"), "there is a component mtp already"),
        (another(name="placebo"), "there is a component placebo already"),
        (another(owns=("attention",)), "the slot attention has two owners, mla and another"),
        (another(requires=("later",)), "another requires later, and no component before it has that name"),
        (another(owns=("atention",)), "'atention', which is no slot; did you mean 'attention'"),
        (another(nodes=mtp.nodes), "has nodes for the slot objective, and neither owns nor modifies it"),
        (another(owns=("rope_theta",), nodes={"rope_theta": (node("moe"),)}), "both have a node of kind 'moe'"),
    ):
        with pytest.raises(ValueError, match=message):
            Registry((*COMPONENTS, unfit))
        with pytest.raises(ValueError, match=f"the package their-package adds a component.*{message}"):
            Registry(COMPONENTS, (Plugin(component=unfit, distribution="their-package", package="theirs"),))


def test_an_owner_comes_before_what_modifies_its_slot() -> None:
    modifier, owner = another(modifies=("rope_theta",)), another(name="owner", owns=("rope_theta",))
    Registry((owner, modifier))
    Registry((modifier, replace(owner, requires=("another",))))
    with pytest.raises(ValueError, match="owner owns the slot rope_theta and comes after another, which modifies it"):
        Registry((modifier, owner))
