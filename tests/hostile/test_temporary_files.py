"""Temporary files: in the folder of what they become, under names that nobody can foresee, and gone afterwards."""

import ast
import stat
import tempfile

import pytest

from tests.conftest import ROOT
from utils.common.files import replacing


def test_names_cannot_be_foreseen_and_lie_beside_the_target(tmp_path) -> None:
    names = set()
    for _ in range(20):
        with replacing(tmp_path / "best.pt") as temporary:
            assert temporary.parent == tmp_path
            assert not temporary.exists()
            names.add(temporary.name)
            temporary.write_text("whole")
    assert len(names) == 20
    assert all(name.startswith(".") and len(name.split(".")[1]) >= 12 for name in names)
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"]


def test_a_link_in_place_of_the_target_is_replaced_and_not_followed(tmp_path) -> None:
    (tmp_path / "other").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "best.pt").symlink_to(tmp_path / "other")
    with replacing(tmp_path / "out" / "best.pt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "other").read_text() == "mine"
    assert not (tmp_path / "out" / "best.pt").is_symlink()


def test_temporary_folders_are_private(tmp_path) -> None:
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        assert stat.S_IMODE((tmp_path / folder).stat().st_mode) == 0o700


@pytest.mark.parametrize("package", ["model", "utils"])
def test_nothing_is_written_to_the_common_temporary_folder(package) -> None:
    """Each temporary folder says where it lies; nobody uses the functions that leave that to the system."""
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                assert name not in {"mktemp", "gettempdir", "mkdtemp", "mkstemp", "NamedTemporaryFile"}, path
                if name == "TemporaryDirectory":
                    assert "dir" in {keyword.arg for keyword in node.keywords}, path
            assert not (isinstance(node, ast.Constant) and str(node.value).startswith("/tmp")), path
