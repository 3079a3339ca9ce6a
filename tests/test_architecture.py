"""Rules of the house that import-linter cannot see."""

import ast
import re
import sys

from tests.conftest import ROOT

SCRIPTS = {path.stem: path for path in ROOT.glob("*.py")}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_nothing_imports_an_entry_point() -> None:
    modules = [path for folder in ("model", "utils", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert len(modules) > 50
    wrong = [
        (str(path), name)
        for path in [*SCRIPTS.values(), *modules]
        for name in imports_of(path)
        if name.split(".")[0] in SCRIPTS
    ]
    assert not wrong


def test_the_network_needs_torch_numpy_and_scipy_alone() -> None:
    allowed = {"torch", "numpy", "scipy", "model", *sys.stdlib_module_names}
    wrong = [
        (path.name, name)
        for path in (ROOT / "model").glob("*.py")
        for name in imports_of(path)
        if name.split(".")[0] not in allowed
    ]
    assert not wrong


def test_the_network_knows_no_flags_and_no_scripts() -> None:
    for path in (ROOT / "model").glob("*.py"):
        assert not re.search(r"bash_|\.sh\b|parse_args|(?<!-)--[a-z]", path.read_text()), path.name


def test_entry_points_are_thin_and_have_their_bash_scripts() -> None:
    assert len(SCRIPTS) == 13
    for name, path in SCRIPTS.items():
        assert len(path.read_text().splitlines()) < 100, name
        assert name == "bids_app" or (ROOT / f"bash_{name}.sh").is_file(), name  # its call is that of all BIDS Apps
