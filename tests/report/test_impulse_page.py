"""The page about a step in volatility."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from riskml.errors import DataError
from riskml.report.impulse_page import impulse_sections
from riskml.report.pages import write_report
from riskml.risk import MarginPolicy


def test_every_market_and_side_has_a_row_per_product(maker: ModuleType, tmp_path: Path) -> None:
    maker.make_tiny_bundle(tmp_path / "b")
    markets = json.loads((tmp_path / "b" / "manifest.json").read_text())["markets"]
    policy = MarginPolicy(rate_limit_per_hour=0.03, slow_weight=0.5, stressed_floor=0.0)
    step, course = impulse_sections(tmp_path / "b", policy)
    assert len(step.rows) == 2 * 2 * len(markets)
    columns = {name: [row[place] for row in step.rows] for place, name in enumerate(step.headers)}
    rises = zip(columns["product"], columns["largest hourly rise %"], strict=True)
    assert max(rise for product, rise in rises if product == "maintenance") == pytest.approx(3.0, rel=1e-3)
    assert max(columns["overshoot %"]) <= 10.0
    assert "0.03" in step.text
    assert course.image


def test_the_page_is_written_for_a_bundle(maker: ModuleType, tmp_path: Path) -> None:
    maker.make_tiny_bundle(tmp_path / "b")
    text = write_report("impulse", tmp_path / "b", tmp_path / "page.html").read_text(encoding="utf-8")
    assert "half-life h" in text


def test_a_bundle_without_reference_scales_is_refused(maker: ModuleType, tmp_path: Path) -> None:
    maker.make_tiny_bundle(tmp_path / "b", reference_sigma={})
    with pytest.raises(DataError, match=r"has no reference scales.*export the bundle again"):
        impulse_sections(tmp_path / "b")
