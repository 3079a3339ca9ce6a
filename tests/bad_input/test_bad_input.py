"""Every kind of bad input, with its message and exit status; see `tests.bad_input.harness` for how to add some."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bad_input.harness import PAGE, Case, Outcome, case_modules, check, make_study, page_of, run_case

ALL = [case for _, cases in case_modules() for case in cases]


@pytest.fixture(scope="module")
def study(synthetic_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "study"
    make_study(folder, synthetic_cohort)
    return folder


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    """What the cases that have run did, by kind."""
    return {}


@pytest.fixture
def outcome_of(study, outcomes, tmp_path_factory, capsys) -> Callable[[Case], Outcome]:
    """Run a case, unless it has run already."""

    def run(case: Case) -> Outcome:
        if case.kind not in outcomes:
            folder = tmp_path_factory.mktemp("case") / "study"
            shutil.copytree(study, folder)
            with pytest.MonkeyPatch.context() as monkeypatch:
                outcomes[case.kind] = run_case(case, folder, monkeypatch, capsys)
        return outcomes[case.kind]

    return run


@pytest.mark.parametrize("case", ALL, ids=[case.kind for case in ALL])
def test_bad_input_is_refused_by_one_message(case, outcome_of) -> None:
    check(case, outcome_of(case))


def test_the_page_shows_what_is_printed(outcome_of, request) -> None:
    kinds = [case.kind for case in ALL]
    assert len(set(kinds)) == len(kinds)
    page = page_of({case.kind: outcome_of(case) for case in ALL})
    if request.config.getoption("--write_pages"):
        PAGE.write_text(page, encoding="utf-8")
    assert page == PAGE.read_text(encoding="utf-8"), "run python -m pytest tests/bad_input --write_pages"
