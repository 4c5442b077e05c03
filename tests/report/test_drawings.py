"""Pictures: shapes carry the meaning, and every one has a text alternative."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from riskml.report.drawings import course, histogram, matrix, number, strip


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "0"), (1.5, "1.5"), (-12345.6, "-12,346"), (0.00001234, "1.23e-05"), (99.999, "100")],
)
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert number(value) == text


def test_every_picture_is_an_image_with_words() -> None:
    pictures = [
        histogram([0.5, 0.5], [0.2, 0.8], (0.0, 1.0)),
        course([(0.0, 1.0, 2.0), (None, None, None), (1.0, 1.0, 1.0)], [0.5]),
        course([(None, None, None)], [0.5]),
        strip([1.0, 0.5, 0.0, None], "half & half"),
        matrix([("family", ""), ("a<b", "f-a")], ["BTC"], {(1, 0): ("broken", "why")}),
    ]
    for text in pictures:
        root = ET.fromstring(text)
        assert root.get("role") == "img"
        assert root.get("aria-label")
        assert "nan" not in text


def test_coverage_is_a_height_not_a_colour_alone() -> None:
    text = strip([1.0, 1.0, 0.6, 0.1, 0.0, None], "x", width=60.0, height=12.0)
    heights = dict(zip(re.findall(r'class="(\w+)" d', text), re.findall(r' d="([^"]+)"', text), strict=True))
    assert heights["full"] == "M0.0 12h20.0v-12h-20.0z"
    assert re.findall(r"v-([\d.]+)", heights["part"]) == ["9", "4.8"]
    assert re.findall(r"v-([\d.]+)", heights["none"]) == ["2"]


def test_equal_neighbours_are_one_shape() -> None:
    assert strip([1.0] * 500, "x").count("M") == 1


def test_a_median_is_not_drawn_across_a_hole() -> None:
    line = course([(0, 0, 0), (0, 1, 2), (None, None, None), (0, 1, 2), (0, 2, 2)], [])
    (path,) = re.findall(r'class="line" d="([^"]+)"', line)
    assert path.count("M") == 2


def test_verdicts_differ_in_shape() -> None:
    marks = {(0, 0): ("broken", "a"), (0, 1): ("suspect", "b"), (0, 2): ("note", "c")}
    text = matrix([("x", "f-x")], ["A", "B", "C"], marks)
    assert "z" in text
    assert [text.count(f'class="{name}"') for name in ("broken", "suspect", "note")] == [1, 1, 1]
    assert "<circle" in text
    assert text.count("<title>") == 3
