"""The direction of the arrows: who imports whom, and what is not imported before it is used."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "glem_graphgym"
MODULES = sorted(PACKAGE.rglob("*.py"))
LAYERS = ("config", "data", "models", "out_of_core", "em", "build", "plan", "report", "registered")
# Which layers each may import; modules beside the layers (files.py, ...) import nothing of ours and serve all.
MAY_IMPORT = {
    "config": {"config"},
    "data": {"data"},
    "models": {"models"},
    "out_of_core": {"out_of_core", "data", "models"},
    "em": {"em", "out_of_core", "data", "models"},
    "report": {"report"},
    "build": {"build", "config", "em", "out_of_core", "data", "models"},
    "plan": {"plan", "build", "config", "em", "out_of_core", "data", "models", "report"},
    "registered": {"registered", "build", "plan", "config", "em", "data", "models", "report"},
}
BESIDE_MAY_IMPORT = {
    "starting": {"processes"},
    "processes": {"heartbeat"},
    "files": {"disk"},
    "modes": {"em"},  # for its types alone
    "hardware": {"processes"},
}
# Large, optional, or both: only whoever uses them pays for them.
LATE = {"transformers", "tokenizers", "peft", "ogb", "tensorboardX", "pyarrow", "lightning"}
LATE |= {"wandb", "mlflow", "trackio"}


def layer_of(file: Path) -> str:
    """The layer that a module belongs to; "" beside the layers."""
    parts = file.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def imports(tree: ast.AST) -> Iterator[str]:
    """Absolute names of all that is imported anywhere below; ``from a import b`` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(file: Path) -> set[str]:
    """Layers, or modules beside them, of ours that a module imports."""
    names = [name.split(".") for name in imports(ast.parse(file.read_text()))]
    return {name[1] if len(name) > 1 else "" for name in names if name[0] == "glem_graphgym"}


def at_import(tree: ast.Module) -> Iterator[str]:
    """Names that are imported when the module itself is: outside of functions and of type-checking blocks."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(node)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def test_the_walk_sees_imports() -> None:
    tree = ast.parse("import a.b\nfrom c import d\ndef f():\n    import e\nclass G:\n    import h\n")
    assert sorted(imports(tree)) == ["a.b", "c.d", "e", "h"]
    assert sorted(at_import(tree)) == ["a.b", "c.d", "h"]
    assert len(MODULES) > 30
    assert {layer_of(file) for file in MODULES} == {"", *LAYERS}


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_layers_import_only_what_lies_below(file: Path) -> None:
    if file == PACKAGE / "__init__.py":
        assert ours(file) == {"registered", "__main__"}
        return
    layer = layer_of(file)
    beside = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    allowed = beside | MAY_IMPORT[layer] if layer else BESIDE_MAY_IMPORT.get(file.stem, set())
    assert ours(file) <= allowed


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_only_what_is_registered_reads_the_global_configuration(file: Path) -> None:
    """And one block of `build`, which puts a configuration there for networks that are not ours."""
    tree = ast.parse(file.read_text())
    names = [name for name in imports(tree) if name.startswith(("torch_geometric.graphgym", "yacs"))]
    if layer_of(file) in ("config", "build", "plan"):  # defaults and registries
        tree.body = [node for node in tree.body if getattr(node, "name", "") != "as_global"]
        names = [name for name in imports(tree) if name.startswith("torch_geometric.graphgym")]
        assert not {"torch_geometric.graphgym.cfg", "torch_geometric.graphgym.config.cfg"} & set(names)
        assert not [name for name in names if name.endswith(".*") or name == "torch_geometric.graphgym.config"]
    elif layer_of(file) != "registered":
        assert not names


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_what_is_large_is_imported_where_it_is_used_and_nothing_is_trained_by_pytorch_lightning(file: Path) -> None:
    tree = ast.parse(file.read_text())
    assert not {name.split(".")[0] for name in at_import(tree)} & LATE
    assert not [name for name in imports(tree) if name.startswith("pytorch_lightning")]


def test_the_package_registers_every_module_of_registered() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    found = {name.split(".")[-1] for name in imports(tree)}
    registering = {
        file.stem
        for file in (PACKAGE / "registered").glob("*.py")
        if re.search(r"^\s*@?register_", file.read_text(), re.M)
    }
    assert registering <= found


@pytest.mark.slow
def test_importing_the_package_loads_no_model_library() -> None:
    """GraphGym imports Lightning by itself, and Lightning's torchmetrics imports transformers; we add nothing."""
    program = (
        "import sys, json; import torch_geometric.graphgym; before = set(sys.modules); import glem_graphgym; "
        "print(json.dumps(sorted({name.split('.')[0] for name in set(sys.modules) - before})))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=300
    )
    added = set(json.loads(result.stdout.splitlines()[-1]))
    assert "glem_graphgym" in added
    assert not added & LATE


# Spelt apart, so that this file may be looked at too.
HOMES = ["ho" + "me", "ro" + "ot", "Us" + "ers"]
INDEX = ["ind" + "ex-url", "find" + "-links", "py" + "pi.org", "py" + "thonhosted"]
FORBIDDEN = {
    "a home folder": re.compile(rf"(?<![\w.>])/({'|'.join(HOMES)})/\w"),
    "a package index": re.compile("|".join(map(re.escape, INDEX)), re.IGNORECASE),
}
TEXT = {".py", ".md", ".cfg", ".toml", ".txt", ".yaml", ".yml", ".sh", ".json", ""}
GENERATED = {"__pycache__", "datasets", "results", "build"}


def repository_files() -> Iterator[Path]:
    places = [path for path in ROOT.iterdir() if not path.name.startswith(".") and path.name not in GENERATED]
    for place in [*places, ROOT / ".ci"]:
        for path in [place] if place.is_file() else sorted(place.rglob("*")):
            if path.is_file() and path.suffix in TEXT and "__pycache__" not in path.parts:
                yield path


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_names_the_machine_it_was_written_on(what: str) -> None:
    found = []
    for path in repository_files():
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if FORBIDDEN[what].search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found


def test_the_search_for_them_finds_them() -> None:
    home, index = FORBIDDEN["a home folder"], FORBIDDEN["a package index"]
    assert all(home.search(f"path = '/{name}/someone'") for name in HOMES)
    assert not home.search(f"<folder>/{HOMES[0]}/x")
    assert all(index.search(f"pip install --{name} https://example.org/") for name in INDEX)
    assert len(list(repository_files())) > 50
