"""Rules of the house that import-linter cannot see."""

import ast

from tests.conftest import ROOT

SCRIPTS = {path.stem: path for path in ROOT.glob("*.py")}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_nothing_imports_an_entry_point() -> None:
    modules = [*SCRIPTS.values(), *(ROOT / "model").glob("*.py"), *(ROOT / "utils").glob("*.py")]
    wrong = [(str(path), name) for path in modules for name in imports_of(path) if name.split(".")[0] in SCRIPTS]
    assert not wrong


def test_the_network_needs_torch_numpy_and_scipy_alone() -> None:
    allowed = {"torch", "numpy", "scipy", "model"}
    standard = {
        "argparse",
        "collections",
        "contextlib",
        "copy",
        "dataclasses",
        "itertools",
        "math",
        "pathlib",
        "re",
        "typing",
    }
    wrong = [
        (path.name, name)
        for path in (ROOT / "model").glob("*.py")
        for name in imports_of(path)
        if name.split(".")[0] not in allowed | standard
    ]
    assert not wrong


def test_entry_points_are_thin_and_have_their_bash_scripts() -> None:
    assert len(SCRIPTS) == 11
    for name, path in SCRIPTS.items():
        assert len(path.read_text().splitlines()) < 100, name
        assert (ROOT / f"bash_{name}.sh").is_file(), name
