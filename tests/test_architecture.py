"""What holds the design together: imports point one way, planning needs no torch, files stay small."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ablate.components.registry import COMPONENTS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ablate"
SOURCES = sorted(PACKAGE.rglob("*.py"))
EVERYTHING = SOURCES + sorted((ROOT / "tests").rglob("*.py")) + sorted((ROOT / "benchmarks").rglob("*.py"))
LINE_CEILING = 500

# Imports go only downwards in this list, inside functions and under TYPE_CHECKING too.
LAYERS = [
    {"cli"},
    {"commands"},
    {"doctor", "notebook"},
    {"report"},
    {"evidence"},
    {"sweep"},
    {"bench"},
    {"export"},
    {"validation"},
    {"attribution"},
    {"runs"},
    {"training"},
    {"parallel"},
    {"cluster"},
    {"teachers"},
    {"presets"},
    {"components"},
    {"data"},
    {"model"},
    {"kernels"},
    {"spec"},
    {"schedules"},
    {"errors", "files", "quantities", "randomness"},
    {"documents"},
]
DEPTH = {name: depth for depth, names in enumerate(LAYERS) for name in names}

# Never with torch: what plans, prices, attributes and reports.
WITHOUT_TORCH = [
    "ablate.spec",
    "ablate.spec.cost",
    "ablate.components.component",
    "ablate.components.registry",
    "ablate.components.variants",
    "ablate.components.listing",
    "ablate.components.codec",
    "ablate.presets",
    "ablate.schedules",
    "ablate.cluster",
    "ablate.evidence",
    "ablate.data.tokenizer",
    "ablate.data.store",
    "ablate.export",
    "ablate.runs.plan",
    "ablate.runs.record",
    "ablate.runs.store",
    "ablate.attribution",
    "ablate.report",
    "ablate.sweep",
    "ablate.cli",
    "ablate.commands",
    "ablate.notebook",
]


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Modules that a file imports, and whether that happens as it is imported itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    deferred: set[ast.AST] = set()
    for node in ast.walk(tree):
        lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        lazy = lazy or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        if lazy or node in deferred:
            deferred.update(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            yield from ((alias.name, node not in deferred) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or "", node not in deferred
            yield from ((f"{node.module}.{alias.name}", node not in deferred) for alias in node.names)


def modules_below(name: str) -> list[str]:
    """The module and, of a package, all that is in it."""
    path = ROOT / Path(*name.split("."))
    if not path.is_dir():
        return [name] if path.with_suffix(".py").exists() else []
    found = sorted(path.rglob("*.py"))
    return [".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in found]


def graph() -> dict[str, set[str]]:
    """Module -> the modules of this package that it imports, whenever that happens."""
    known = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in SOURCES}
    return {
        module: {name for name, _ in imports(path) if name in known and name != module}
        for module, path in known.items()
    }


def test_imports_point_one_way() -> None:
    wrong = []
    for module, imported in graph().items():
        for other in imported:
            if module.count(".") and other.count("."):
                own, theirs = module.split(".")[1], other.split(".")[1]
                if own != theirs and own != "__main__" and DEPTH[theirs] <= DEPTH[own]:
                    wrong.append(f"{module} imports {other}")
    assert not wrong


def test_there_is_no_import_circle() -> None:
    """Not inside functions and not under TYPE_CHECKING either."""
    left = graph()
    while leaves := {module for module, imported in left.items() if not imported & left.keys()}:
        left = {module: imported for module, imported in left.items() if module not in leaves}
    # What is left imports, directly or not, something that imports it: without what only reads a circle.
    while roots := {m for m in left if not any(m in imported for imported in left.values())}:
        left = {module: imported for module, imported in left.items() if module not in roots}
    assert not sorted(left)


def test_components_know_no_runs_and_each_other_only_by_need() -> None:
    """A folder can be deleted: others import it only where they require it, and nodes and not registries."""
    wrong = []
    for path in (PACKAGE / "components").glob("*/**/*.py"):
        own = path.relative_to(PACKAGE / "components").parts[0]
        for module, _ in imports(path):
            names = module.split(".")
            if names[:2] == ["ablate", "components"] and len(names) > 2 and names[2] not in (own, "component"):
                required = {r.replace("-", "_") for c in COMPONENTS for r in c.requires if own == folder(c.name)}
                if names[2] not in required:
                    wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong


def folder(component: str) -> str:
    return component.replace("-", "_")


def test_planning_pricing_attribution_and_reports_need_no_torch() -> None:
    modules = [name for start in WITHOUT_TORCH for name in modules_below(start)]
    assert len(modules) > 20
    modules += [f"ablate.components.{folder(c.name)}" for c in COMPONENTS]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'lightning', 'transformers', 'optuna', 'wandb'} & set(sys.modules)\n"
        "    assert not heavy, f'{name} imports {sorted(heavy)}'\n"
        "from ablate.presets import preset\n"
        "from ablate.components.variants import Variant\n"
        "nano = preset('nano')\n"
        "Variant.full(nano).resolve(nano).model.cost(32).summary()\n"
        "assert 'torch' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr.splitlines()[-1]


def test_spec_files_bring_no_torch() -> None:
    components = PACKAGE / "components"
    for path in [components / "__init__.py", *components.glob("*/spec.py"), *components.glob("*/__init__.py")]:
        top = {module.split(".")[0] for module, at_import in imports(path) if at_import}
        assert not top & {"torch", "lightning"}, path


@pytest.mark.parametrize("path", EVERYTHING, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_is_small_and_says_its_purpose(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= LINE_CEILING
    assert path.name not in {"utils.py", "helpers.py", "common.py", "base.py", "misc.py"}
    assert not text.strip() or text.startswith('"""'), "the first line says what the file is for"


def test_no_component_is_named_where_only_slots_are_known() -> None:
    names = {alias for c in COMPONENTS for alias in (c.name, folder(c.name))}
    # "none" is the name of the variant with everything off as well.
    kinds = {t.__dataclass_fields__["kind"].default for c in COMPONENTS for ts in c.nodes.values() for t in ts} - {
        "none"
    }
    for path in (p for part in ("model", "training", "runs") for p in (PACKAGE / part).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documentation = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
                assert node.value not in names | kinds, f"{path.name}:{node.lineno}: {node.value!r}"
            if isinstance(node, ast.Name | ast.Attribute):
                name = node.id if isinstance(node, ast.Name) else node.attr
                assert not set(re.split(r"[^a-z0-9]+|_", name.lower())) & {"mla", "moe", "mtp"}, (path.name, name)
        for module, _ in imports(path):
            named = {f"ablate.components.{folder(c.name)}" for c in COMPONENTS}
            assert not any(module.startswith(each) for each in named), f"{path.name} imports {module}"


FORBIDDEN = {
    "shell=True": r"shell\s*=\s*True",
    "pickle": r"^\s*(import|from)\s+(pickle|cPickle|dill|joblib)\b",
    "yaml.load": r"yaml\.(unsafe_)?load\(",
    "os.system": r"os\.(system|popen)\(",
    "eval or exec": r"(?<![\w.])(eval|exec)\(",
    "bare except": r"^\s*except\s*:",
}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_that_runs_what_it_reads(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for name, pattern in FORBIDDEN.items():
        assert not re.search(pattern, text, re.MULTILINE), name
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            arguments = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert arguments.get("weights_only") == "True", f"line {node.lineno}: torch.load without weights_only=True"
