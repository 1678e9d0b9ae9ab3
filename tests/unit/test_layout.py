"""Who may import whom (README, "Design")."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = {
    "runtime": set(),
    "train": {"runtime"},
    "calib": {"runtime"},
    "export": {"runtime", "train", "calib"},
    "benchmarks": {"runtime", "train", "calib", "export"},
}


def imported(path: Path) -> set[str]:
    """Sub-packages of glocal that a module imports from outside its own."""
    depth = len(path.relative_to(ROOT).parts)
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == depth and node.module:
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("glocal."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("glocal.")}
    return names


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_flow_one_way(folder):
    for path in (ROOT / folder).rglob("*.py"):
        assert imported(path) <= ALLOWED[folder] | {folder}, path


def test_the_rule_sees_imports():
    assert {"runtime", "train"} <= imported(ROOT / "export" / "build.py")
    assert imported(ROOT / "export" / "build_engines.py") == {"export", "runtime"}


def test_no_module_is_longer_than_400_lines():
    sources = [path for folder in (*ALLOWED, "tests") for path in (ROOT / folder).rglob("*.py")]
    assert sources
    assert [path.name for path in sources if len(path.read_text().splitlines()) > 400] == []
