"""The page: one file that needs nothing else, says what was found, and has its numbers beside it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from riskml import cli
from riskml.errors import ConfigError, DataError
from riskml.report.feature_page import render, to_record, write_feature_page
from riskml.report.pages import write_report
from riskml.tables.dataset import Dataset

from .conftest import NAMES, MakeDataset


class Page(HTMLParser):
    """Collects what a reader of the page meets."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        # li may stay open before its list ends; nothing else on the page does
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)


def page_of(data: Dataset) -> str:
    from riskml.report.feature_findings import find_problems
    from riskml.report.feature_statistics import describe_features
    from riskml.report.target_statistics import describe_targets

    report, targets = describe_features(data), describe_targets(data)
    return render(data.info, report, targets, find_problems(report, targets, data.info))


@pytest.fixture(scope="session")
def healthy_page(toy: Dataset) -> str:
    return page_of(toy)


def test_the_page_needs_no_network_and_no_script(healthy_page: str) -> None:
    page = Page(healthy_page)
    assert page.unbalanced == []
    assert page.open == []
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "img"} == set()
    references = [
        value for _, attributes in page.tags for name, value in attributes.items() if name == "href"
    ]
    assert references
    assert all(value and value.startswith("#") for value in references)
    assert not re.search(r"url\(|@import|https?:", healthy_page)


def test_every_link_leads_somewhere_and_every_picture_has_words(healthy_page: str) -> None:
    page = Page(healthy_page)
    places = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(places) == len(set(places))
    targets = {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    assert {target[1:] for target in targets if target} <= set(places)
    assert {f"f-{name}" for name in NAMES} <= set(places)
    for tag, attributes in page.tags:
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-label"]


def test_it_suits_dark_screens_and_paper(healthy_page: str) -> None:
    assert "prefers-color-scheme: dark" in healthy_page
    assert "@media print" in healthy_page


def test_a_healthy_dataset_is_called_so(healthy_page: str) -> None:
    assert "Nothing looks broken." in healthy_page
    assert f"<b>{len(NAMES)}</b> of {len(NAMES)} features without a finding" in healthy_page


def test_findings_stand_on_top_and_at_the_feature(broken: MakeDataset) -> None:
    page = page_of(
        broken(
            {
                "basis_bps": lambda values: values.fill(3.5),
                "funding_rate_8h": lambda values: values[5000:].fill(np.nan),
            }
        )
    )
    top = page[: page.index('id="map"')]
    assert top.index("constant") < top.index("source ended")
    assert 'href="#f-basis_bps"' in top
    assert "ingest table funding" in top
    section = page[page.index('id="f-basis_bps"') :]
    assert "■</span> constant" in section[:400]


def test_names_from_outside_are_escaped(toy: Dataset) -> None:
    info = replace(toy.info, path="<script>alert(1)</script>")
    page = page_of(replace(toy, info=info, feature_names=("<b>mine", *NAMES[1:])))
    assert "<script>" not in page
    assert "<b>mine" not in page
    assert "&lt;b&gt;mine" in page


def test_the_numbers_beside_the_page_are_plain_json(toy: Dataset, broken: MakeDataset) -> None:
    from riskml.report.feature_findings import find_problems
    from riskml.report.feature_statistics import describe_features
    from riskml.report.target_statistics import describe_targets

    data = broken({"basis_bps": lambda values: values.fill(np.nan)})
    report, targets = describe_features(data), describe_targets(data)
    findings = find_problems(report, targets, data.info)
    record = json.loads(json.dumps(to_record(data.info, report, targets, findings), allow_nan=False))
    assert record["parts"]["held_against_fit"] == "test"
    assert [item["kind"] for item in record["findings"]] == ["empty"]
    by_name = {item["name"]: item for item in record["features"]}
    assert by_name["basis_bps"]["coverage"] == 0.0
    assert by_name["log_har_24h"]["psi"] == pytest.approx(report.features[0].psi, rel=1e-6)
    assert by_name["log_har_24h"]["markets"][1]["market"] == "ETH"
    assert len(record["periods"]) == len(by_name["log_har_24h"]["quartiles"])
    assert "data_hashes" not in record["dataset"]


def test_a_stored_dataset_gets_a_page_and_its_json(stored: Path, tmp_path: Path) -> None:
    written = write_feature_page(stored, tmp_path / "out")
    assert (written.html, written.json) == (
        tmp_path / "out" / "features.html",
        tmp_path / "out" / "features.json",
    )
    assert written.findings == ()
    assert written.counts() == {"broken": 0, "suspect": 0, "note": 0}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["features.html", "features.json"]
    assert write_report("features", stored, tmp_path / "again.html") == tmp_path / "again.html"
    assert (tmp_path / "again.html").read_text() == written.html.read_text()


def test_the_command_counts_findings_and_takes_seams(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: object) -> dict[str, Any]:
        assert cli.main(["report", "features", str(stored), *map(str, arguments), "--json", "--quiet"]) == 0
        record: dict[str, Any] = json.loads(capsys.readouterr().out)
        return record

    out = tmp_path / "page.html"
    record = run("--out", out, "--fit-end", "2024-05-01", "--calibrate-end", "2024-07-01")
    assert record["outputs"] == [str(out), str(out.with_suffix(".json"))]
    assert record["counts"] == {"broken": 0, "suspect": 0, "note": 0}
    parts = json.loads(out.with_suffix(".json").read_text())["parts"]
    assert (parts["fit_end"], parts["calibrate_end"]) == ("2024-05-01T00:00:00Z", "2024-07-01T00:00:00Z")


def test_options_of_the_page_about_features_are_refused_elsewhere(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["report", "run", "somewhere", "--fit-end", "2024-05-01", "--lake", "x"]) == 2
    assert "--fit-end, --lake: 'riskml report run' does not take this" in capsys.readouterr().err


def test_what_is_no_dataset_or_no_page_is_refused(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        write_feature_page(tmp_path / "nothing", tmp_path / "a.html")
    with pytest.raises(ConfigError, match="is where the numbers would go"):
        write_feature_page(stored, tmp_path / "a.json")
    assert not (tmp_path / "a.html").exists()


def test_a_lake_adds_its_sources(stored: Path, tmp_path: Path) -> None:
    from riskml.tables.synthetic import generate_sample

    generate_sample(tmp_path / "lake", days=20, markets=1, accounts=2, interval="4h")
    page = write_feature_page(stored, tmp_path / "a.html", lake=tmp_path / "lake").html.read_text()
    sources = page[page.index('id="sources"') :]
    assert re.search(r"<tr><td>funding</td><td>\w+</td><td class=\"n\">1</td>", sources)
    with pytest.raises(DataError, match="no lake|does not exist"):
        write_feature_page(stored, tmp_path / "b.html", lake=tmp_path / "nowhere")
    assert not (tmp_path / "b.html").exists()
    assert not (tmp_path / "b.json").exists()
