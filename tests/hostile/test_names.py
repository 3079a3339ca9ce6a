"""Names that carry markup, formulas or control characters: pages and figures show them, and do nothing else."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tests.prediction.conftest import MANIFEST_ENTRIES, TYPICAL, prepared_scan, random_checkpoint
from utils.evaluation.reports import plot_ages
from utils.prediction.model_card import _describe_sites
from utils.prediction.weights import save_weights
from utils.preparation.overview import write_overview
from utils.preparation.records import QC_FOLDER

SUBJECT = "<img src=x onerror=alert(1)>"
HANDLER = '" onmouseover="alert(2)'
FORMULA = "sub-$a_$"  # no formula of TeX either


class Page(HTMLParser):
    """The tags and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def check(self, scripts: int) -> None:
        assert [tag for tag, _ in self.tags].count("script") == scripts
        handlers = [name for _, attributes in self.tags for name in attributes if name.startswith("on")]
        assert not handlers
        assert not any(attributes.get("src") == "x" for _, attributes in self.tags)
        links = [value or "" for _, attributes in self.tags for name, value in attributes.items() if name == "href"]
        assert not any(link.startswith(("javascript:", "http")) for link in links)


def test_the_report_on_gaps_shows_names_as_text(tmp_path, monkeypatch, run_here) -> None:
    monkeypatch.chdir(tmp_path)
    rows = ["subject_id,age,brain_age,site,diagnosis"]
    for number in range(40):
        name = SUBJECT if number == 0 else f"s{number}"
        site = "<script>alert(3)</script>" if number % 2 else HANDLER.replace('"', '""')
        rows.append(f'"{name}",{20 + number},{21 + number + number % 7},"{site}",{"HC" if number % 3 else "<b>AD"}')
    Path("ages.csv").write_text("\n".join(rows))
    shutil.copy("ages.csv", "labels.csv")
    run_here("analyse_brain_age_gap.py", "--predictions", "ages.csv", "--output_dir", "out", "--permutations", 20,
             "--repeats", 1)  # fmt: skip
    page = Path("out/report.html").read_text()
    Page(page).check(scripts=0)
    assert "&lt;b&gt;AD" in page


def test_the_page_of_quality_shows_names_as_text(tmp_path) -> None:
    (tmp_path / QC_FOLDER).mkdir()
    for name in (SUBJECT, HANDLER, "sub-#1?x=2"):
        record = {
            "name": name, "verdict": "fail", "reasons": [f"because of {SUBJECT}"], "quality": {}, "seconds": 1.0,
            "memory": 1.0, "source": f"/data/{name}", "stamp": [], "fingerprint": "a" * 12, "versions": {},
            "registration": HANDLER, "finished": True,
        }  # fmt: skip
        (tmp_path / QC_FOLDER / f"{name}.json").write_text(json.dumps(record))
        (tmp_path / QC_FOLDER / f"{name}.png").write_bytes(b"")
    write_overview(tmp_path)
    page = Page((tmp_path / "index.html").read_text())
    page.check(scripts=1)
    pictures = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert "qc/sub-%231%3Fx%3D2.png" in pictures
    assert len(pictures) == 3


@pytest.mark.parametrize(
    "record", ["[1]", '{"name": "a"}', '{"name": "../../a", "verdict": "pass"}', "[" * 100_000, "1"]
)
def test_records_of_another_form_count_as_none(tmp_path, record) -> None:
    (tmp_path / QC_FOLDER).mkdir()
    (tmp_path / QC_FOLDER / "a.json").write_text(record)
    write_overview(tmp_path)
    assert (tmp_path / "qc.csv").read_text().count("\n") == 1


def test_the_model_card_shows_names_as_text() -> None:
    row = {"held_out": "sites", "site": f"A | B\n# {SUBJECT}", "n": 9, "mae": 1.0, "mean_gap": 1.0, "pearson": 0.5,
           "coverage": 0.9, "n_seen_ages": 0}  # fmt: skip
    card = _describe_sites([row], 5.0)
    assert "<" not in card
    (line,) = [line for line in card.splitlines() if line.startswith("| sites")]
    assert len(re.findall(r"(?<!\\)\|", line)) == 11


def test_figures_show_names_as_text(tmp_path, monkeypatch, run_here) -> None:
    monkeypatch.chdir(tmp_path)
    plot_ages(np.array([20.0, 40.0]), np.array([25.0, 35.0]), FORMULA, [FORMULA], ["A", FORMULA]).savefig("figure.png")
    members = [[random_checkpoint(stage, stage) for stage in (1, 2)]]
    save_weights(Path("weights"), members, MANIFEST_ENTRIES, "# Card\n", TYPICAL)
    prepared_scan(Path("in", f"{FORMULA}.nii.gz"))
    with pytest.raises(SystemExit) as stop:
        run_here("predict.py", "--input", "in", "--weights_dir", "weights", "--num_workers", 0, "--device", "cpu")
    assert stop.value.code == 0
    assert Path("predictions", "pictures", f"{FORMULA}.png").stat().st_size > 0
