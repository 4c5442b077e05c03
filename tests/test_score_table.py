"""The script that measures the risk score, and the table of the document that it writes."""

from __future__ import annotations

import csv
import importlib.util
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from riskml.learning.account_evaluation import AccountCases
from riskml.risk.score import probability_to_score, score_table
from riskml.units import DAY, to_us

FOLDER = Path(__file__).resolve().parents[1] / "training"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The script, which is no package and imports its neighbour."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        spec = importlib.util.spec_from_file_location("training_score_table", FOLDER / "score_table.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        yield module


def replay(script: ModuleType, n_rows: int = 4000) -> Any:
    """Accounts over 100 days whose probability comes true as forecast, and half as often as served."""
    rng = np.random.default_rng(6)
    said = np.repeat(10.0 ** rng.uniform(-3.0, -0.4, n_rows)[:, None], 3, axis=1)
    labels = np.zeros((n_rows, 3, 3))
    labels[:, -1, 0] = rng.random(n_rows) < said[:, -1]
    ts = np.sort(rng.integers(0, 100, n_rows)) * DAY + to_us("2024-01-01")
    return SimpleNamespace(
        said=said, guarded=np.minimum(2.0 * said, 1.0), labels=labels, drawn=SimpleNamespace(ts=ts)
    )


def test_replayed_accounts_are_banded_as_forecast_and_as_served_by_day_and_week(script: ModuleType) -> None:
    rows = script.replayed_rows("2024", replay(script))
    parts = {(row["part"], row["block"]) for row in rows}
    assert parts == {
        (part, block) for part in ("replayed 2024", "replayed 2024 served") for block in ("day", "week")
    }
    days = [row for row in rows if row["part"] == "replayed 2024" and row["block"] == "day"]
    assert sum(row["n_rows"] for row in days) == 4000
    assert max(row["n_blocks"] for row in days) == 100
    assert max(row["n_blocks"] for row in rows if row["block"] == "week") in (15, 16)
    found = script.outside(rows)
    assert len(found["replayed 2024 by day"]) <= 1
    too_high = found["replayed 2024 served by day"]
    assert len(too_high) >= 2
    for factor, forecast, observed in too_high.values():
        assert factor > 1.0
        assert forecast > observed


def test_only_the_longest_horizon_and_the_label_count(script: ModuleType) -> None:
    found = replay(script)
    rows = script.replayed_rows("x", found)
    found.labels[:, :2] = 1.0
    found.labels[:, :, 1:] = 1.0
    found.said[:, :2] = 0.9
    assert script.replayed_rows("x", found) == rows


def test_recorded_accounts_are_banded_by_group_and_held_still_where_that_is_known(script: ModuleType) -> None:
    rng = np.random.default_rng(1)
    n_rows = 600
    probability, account = 10.0 ** rng.uniform(-4.0, -0.1, n_rows), rng.integers(0, 30, n_rows)
    outcome = (rng.random(n_rows) < 0.1).astype(float)
    distance = np.where(np.arange(n_rows) < 100, -0.1, 0.2)
    cases = AccountCases("24h", account, outcome, probability, np.ones(n_rows), distance)
    covered = np.arange(n_rows + 50) % 2 == 0
    held = np.full((n_rows + 50, 3), np.nan)
    held[covered, -1] = rng.random(covered.sum()) < 0.2
    rows = script.recorded_rows(" x", SimpleNamespace(covered=covered), cases, held)
    counts: dict[str, int] = {}
    events: dict[str, int] = {}
    for row in rows:
        counts[row["part"]] = counts.get(row["part"], 0) + row["n_rows"]
        events[row["part"]] = events.get(row["part"], 0) + row["n_events"]
    names = ("all", "above", "above covered")
    above = np.arange(n_rows) >= 100
    assert counts == {
        **{f"recorded {name} x": n for name, n in zip(names, (600, 500, 250), strict=True)},
        "recorded above covered x held still": 250,
    }
    assert events["recorded above x"] == outcome[above].sum()
    assert events["recorded above covered x held still"] == held[:n_rows, -1][above & covered[:n_rows]].sum()


def test_a_band_is_bold_only_where_the_forecast_lies_outside(script: ModuleType) -> None:
    score = np.repeat(probability_to_score([0.02, 0.2]), 200)
    outcome = np.concatenate([np.arange(200) < 4, np.arange(200) < 160]).astype(float)
    table = script.rows_of("replayed pooled", "day", score_table(score, outcome))
    text = script.render(script.to_csv(table)).splitlines()
    assert text[0].startswith("| score | replayed, as forecast |")
    assert text[2].startswith("| 66.7 to 75.0 | 2 % -> 2 % [0.55 %, 5 %], 4 of 200 | - |")
    assert text[3].startswith("| 83.3 to 91.7 | **20 % -> 80 % [")
    assert len(text) == 4


def test_the_csv_reads_back_to_six_digits(script: ModuleType) -> None:
    table = script.rows_of("a", "day", score_table([40.0, 60.0, 61.0], [0.0, 1.0, 0.0]))
    back = list(csv.DictReader(io.StringIO(script.to_csv(table))))
    assert [row["part"] for row in back] == ["a", "a"]
    for row, wanted in zip(back, table, strict=True):
        for name, value in wanted.items():
            if isinstance(value, float):
                assert float(row[name]) == pytest.approx(value, rel=1e-5)


def test_a_probability_is_named_by_its_bin(script: ModuleType) -> None:
    assert script.band_names(np.asarray([0.0, 0.001, 0.0011, 0.05, 1.0])).tolist() == [
        "0-0.001", "0-0.001", "0.001-0.003", "0.03-0.1", "0.3-1",
    ]  # fmt: skip
    ts = np.asarray([to_us("2023-02-28T23:00"), to_us("2023-03-01")])
    assert script.months(ts).tolist() == ["2023-02", "2023-03"]


def test_the_document_shows_the_table_that_was_measured(script: ModuleType) -> None:
    table = script.render(script.TABLE.read_text(encoding="utf-8"))
    document = script.DOCUMENT.read_text(encoding="utf-8")
    block = f"{script.BEGIN}\n{table}\n{script.END}"
    assert block in document, "run: python training/score_table.py --write"
    assert len(table.splitlines()) == 14
