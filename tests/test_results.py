"""The figures that the README shows are the ones that were recorded."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from riskml.errors import DataError

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "training" / "results"


def script(name: str) -> ModuleType:
    """A script of the folder ``training``, which is no package; it may import its neighbours."""
    folder = REPOSITORY / "training"
    spec = importlib.util.spec_from_file_location(f"training_{name}", folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        spec.loader.exec_module(module)
    return module


def test_the_results_of_the_readme_are_those_of_the_newest_recorded_run() -> None:
    table = script("results_table")
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    block = table.render(table.newest_line(), table.newest_accounts())
    assert block in readme, "run: python training/results_table.py --write"


def test_the_readme_names_the_horizons_at_which_accounts_beat_leverage() -> None:
    table = script("results_table")
    line = table.newest_accounts()
    found = line["recorded"]["comparisons"]
    for horizon, low in (("1h", 0.01), ("6h", -0.01), ("24h", 0.01)):
        found[f"auc riskml leverage above all {horizon}"][2] = low
    block = table.render(table.newest_line(), line)
    assert "excludes 0 in riskml's favour at 1h, 24h in AUC" in block
    assert "The backfill's own figures are lower" in block
    found["auc riskml leverage above all 24h"][:2] = [0.5, 0.6]
    assert "The backfill's own figures are lower" not in table.render(table.newest_line(), line)


def test_every_recorded_result_names_machine_date_and_command() -> None:
    training = [
        json.loads(text)
        for file in REPOSITORY.glob("training/results/*.jsonl")
        for text in file.read_text(encoding="utf-8").splitlines()
    ]
    serving = [json.loads(f.read_text(encoding="utf-8")) for f in REPOSITORY.glob("serving/results/*.json")]
    assert training
    assert serving
    for line in [*training, *serving]:
        assert {"machine", "date", "command"} <= line.keys()


def newest_targets() -> tuple[ModuleType, list[dict[str, Any]]]:
    targets = script("targets")
    return targets, targets.newest_lines()


def test_the_table_of_targets_is_that_of_the_newest_recorded_runs() -> None:
    targets, lines = newest_targets()
    text = targets.TABLE.read_text(encoding="utf-8")
    assert text == targets.render(*lines), "run: python training/targets.py --write"


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [
        ("log_loss_ratio 8h all both", 0.99, "log-loss ratio to logit(z)"),
        ("breach_rate 1h all down", 0.0066, "breaches, long, pooled"),
        ("breach_rate 1h all down", 0.0034, "breaches, long, pooled"),
        ("portfolio_saving 24h mixed policy", 0.29, "mixed books below gross"),
    ],
)
def test_a_figure_beyond_its_target_is_called_missed(key: str, value: float, name: str) -> None:
    targets, lines = newest_targets()
    lines[0]["pooled"][key][0] = value
    row = next(line for line in targets.render(*lines).splitlines() if line.startswith(f"| {name} |"))
    assert row.endswith("**missed** |")


def test_a_file_without_the_line_is_named_with_what_makes_it(tmp_path: Path) -> None:
    newest = script("targets").newest
    with pytest.raises(DataError, match=r"absent\.jsonl has no line with seeds") as refused:
        newest(tmp_path / "absent.jsonl", "seeds", fix="run ablate.py seeds")
    assert refused.value.fix == "run ablate.py seeds"


@pytest.fixture(scope="module")
def accounts() -> ModuleType:
    return script("account_targets")


def row_of(page: str, start: str) -> str:
    """The one row of a page that starts so."""
    (row,) = [line for line in page.splitlines() if line.startswith(f"| {start}")]
    return row


def changed(found: Any, path: tuple[Any, ...], value: Any) -> None:
    """Set one figure."""
    *parts, last = path
    for part in parts:
        found = found[part]
    assert last in found or last in range(len(found))
    found[last] = value


def test_the_table_of_accounts_is_that_of_the_newest_recorded_runs(accounts: ModuleType) -> None:
    text = accounts.TABLE.read_text(encoding="utf-8")
    assert text == accounts.render(accounts.newest_figures()), (
        "run: python training/account_targets.py --write"
    )


_MAINTENANCE = ("products", "maintenance")
_STEP = ("impulse", "responses")
FIGURES: list[tuple[tuple[Any, ...], float, float, str]] = [
    (
        ("accounts", "replayed", "rows", "pooled all 8h", 0),
        0.01,
        0.0101,
        "calibration error, as forecast, pooled",
    ),
    (
        ("accounts", "replayed", "rows", "2024 all 1h", 0),
        0.01,
        0.0101,
        "calibration error, as forecast, worst",
    ),
    (
        ("products", "initial", "8h", "riskml to fhs_ewma"),
        -0.1,
        -0.099,
        "average to that of FHS-EWMA, as forecast",
    ),
    (
        ("products", "initial", "1h", "served breach short"),
        0.0035,
        0.0034,
        "breaches, short, as served, a lost",
    ),
    (
        (*_MAINTENANCE, "points", "policy defaults", "breach"),
        0.005,
        0.0051,
        "breaches, pooled, policy defaults, as f",
    ),
    (
        (*_MAINTENANCE, "served", "policy defaults", "worst_peak_to_trough"),
        4.0,
        4.1,
        "peak to trough in a year, worst market-side, policy defaults, as served",
    ),
    (
        (*_STEP, "default: initial", "overshoot"),
        0.1,
        0.11,
        "overshoot of initial, mean response, default policy |",
    ),
    (
        (*_STEP, "default: maintenance", "largest_hourly_rise_of_any"),
        0.019,
        0.0191,
        "largest hourly rise of maintenance, default policy |",
    ),
    (("hedged", "pooled", "hedged 24h saving policy", 0), 0.35, 0.34, "margin below gross, default policy"),
    (
        ("hedged", "fine", "5m", "pooled", "hedged 1h breach bound 5m policy", 0),
        0.005,
        0.0051,
        "breaches, default policy, upper bound, 5m bars",
    ),
    (
        ("hedged", "fine", "15m", "pooled", "flip 8h breach one closes 15m stressed", 0),
        0.005,
        0.0051,
        "breaches of the stressed requirement, all correlations to 1, by closes, 15m bars",
    ),
    (
        ("depegs", "usdc", "first_charge", "minutes_after_first_close_below_0.99"),
        15.0,
        15.1,
        "USDC: minutes from the first close / the bar",
    ),
    (
        ("depegs", "ust", "first_row_below_0.99", "charge_when_known"),
        0.9,
        0.2,
        "UST: charged on the first row",
    ),
    (("depegs", "intact", "redemption_intact", "liquidated"), 0, 1, "prints of one venue down to"),
]


@pytest.mark.parametrize(("path", "kept", "beyond", "name"), FIGURES, ids=[row[3] for row in FIGURES])
def test_an_account_figure_is_met_at_its_aim_and_missed_beyond_it(
    accounts: ModuleType, path: tuple[Any, ...], kept: float, beyond: float, name: str
) -> None:
    found = accounts.newest_figures()
    changed(found, path, kept)
    assert row_of(accounts.render(found), name).endswith("| met |")
    changed(found, path, beyond)
    assert row_of(accounts.render(found), name).endswith("| **missed** |")


@pytest.mark.parametrize(
    ("figures", "verdict"),
    [
        ([(0.9, 0.8, 0.01)] * 3, "met"),
        ([(0.9, 0.8, -0.01)] * 3, "higher, interval holds 0"),
        ([(0.8, 0.9, -0.2)] * 3, "**missed**"),
        ([(0.9, 0.8, 0.01), (0.9, 0.8, -0.01), (0.8, 0.9, -0.2)],
         "met at 1h; higher, interval holds 0 at 6h; **missed** at 24h"),
        ([(0.9, 0.8, -0.01), (0.9, 0.8, 0.01), (0.9, 0.8, 0.0)],
         "higher, interval holds 0 at 1h and 24h; met at 6h"),
    ],
)  # fmt: skip
def test_a_yardstick_is_beaten_only_where_the_interval_excludes_0(
    accounts: ModuleType, figures: list[tuple[float, float, float]], verdict: str
) -> None:
    found = accounts.newest_figures()
    for horizon, (value, yardstick, low) in zip(("1h", "6h", "24h"), figures, strict=True):
        for name in ("leverage", "distance"):
            row = found["accounts"]["recorded"]["comparisons"][f"auc riskml {name} above covered {horizon}"]
            row[:3] = [value, yardstick, low]
    assert row_of(accounts.render(found), "covered: AUC").endswith(f"| {verdict} |")


def test_a_lower_log_loss_has_to_be_lower_than_both_yardsticks(accounts: ModuleType) -> None:
    found = accounts.newest_figures()
    walked = found["behaviour"]["behaviour"]
    for horizon in ("1h", "6h", "24h"):
        for name in ("leverage", "distance"):
            key = f"log_loss riskml_mapped {name} above all month"
            walked[horizon]["walk_forward"][key][:4] = [0.1, 0.2, -0.15, -0.05]
    start = "all, by month: log-loss, intercept and slope fitted"
    assert row_of(accounts.render(found), start).endswith("| met |")
    walked["6h"]["walk_forward"]["log_loss riskml_mapped distance above all month"][3] = 0.01
    assert row_of(accounts.render(found), start).endswith(
        "| met at 1h and 24h; lower, interval holds 0 at 6h |"
    )
    walked["6h"]["walk_forward"]["log_loss riskml_mapped distance above all month"][:2] = [0.2, 0.1]
    assert row_of(accounts.render(found), start).endswith("| met at 1h and 24h; **missed** at 6h |")


@pytest.mark.parametrize(
    ("path", "file", "command"),
    [
        (("accounts", "replayed"), "accounts.jsonl", "evaluate_accounts.py"),
        (("behaviour", "behaviour"), "accounts.jsonl", "score_table.py"),
        (("products", "maintenance", "served"), "two_products.jsonl", "two_products.py"),
        (
            ("impulse", "responses", "default, no guards: initial"),
            "impulse_response.jsonl",
            "impulse_response.py",
        ),
        (("hedged", "fine"), "hedged_books.jsonl", "hedged_books.py"),
        (("depegs", "intact"), "depegs.jsonl", "depegs.py"),
        (("breaker", "parts"), "breaker.jsonl", "breaker_states.py"),
    ],
)
def test_a_line_of_an_older_form_names_its_file_and_command(
    accounts: ModuleType, path: tuple[str, ...], file: str, command: str
) -> None:
    found = accounts.newest_figures()
    *parts, last = path
    line = found
    for part in parts:
        line = line[part]
    del line[last]
    with pytest.raises(DataError, match=rf"{file}: the newest figures lack .*{last}") as refused:
        accounts.render(found)
    assert refused.value.fix.startswith(f"run python training/{command} ".rstrip())


def test_bands_without_a_part_name_the_score_table(accounts: ModuleType) -> None:
    found = accounts.newest_figures()
    found["bands"] = [row for row in found["bands"] if row["part"] != "replayed pooled served"]
    with pytest.raises(DataError, match=r"score_table\.csv: .*replayed pooled served"):
        accounts.render(found)


def test_the_bands_of_the_score_are_those_of_its_line(accounts: ModuleType) -> None:
    found = accounts.newest_figures()
    page = accounts.render(found)
    for part, words in (
        ("replayed pooled by day", "replayed, pooled, as forecast"),
        ("replayed pooled served by day", "replayed, pooled, as served"),
        ("recorded above covered held still by account", "Hyperliquid 2023, held still"),
        ("recorded above covered by account", "Hyperliquid 2023, recorded"),
    ):
        outside = len(found["behaviour"]["outside"][part])
        row = row_of(page, f"bands inside their 95 % interval, {words} |")
        assert f"| {12 - outside} of 12" in row
        assert row.count(" for ") == outside


def test_points_of_the_sweep_are_counted_without_the_named_ones(accounts: ModuleType) -> None:
    found = accounts.newest_figures()
    limits = found["products"]["maintenance"]["limits"]
    with (RESULTS / "two_products.csv").open(encoding="utf-8", newline="") as file:
        sweep = [row for row in csv.DictReader(file, delimiter=";") if row["point"].startswith("{")]
    missed = [{name for name, limit in limits.items() if float(row[name]) > limit} for row in sweep]
    page = accounts.render(found)
    for start, few in (("meet all five", set()), ("meet all but the excess, or all", {"excess"})):
        row = row_of(page, f"points of the sweep that {start}")
        assert row.split(" | ")[2] == str(sum(each <= few for each in missed))


@pytest.mark.parametrize("name", ["sequence", "families", "loss", "seeds"])
def test_the_variants_of_an_experiment_can_be_fitted_and_differ(name: str) -> None:
    from riskml.learning.recipe import parse_recipe

    plan = script("ablate").PLANS[name]()
    recipes = {}
    for label, variant in plan.variants.items():
        assert parse_recipe(variant.recipe.to_dict()) == variant.recipe
        if variant.fitted_as:
            assert variant.recipe == plan.variants[variant.fitted_as].recipe
            assert set(variant.lost) <= set(variant.recipe.network.features)
            assert variant.lost
        else:
            recipes[label] = json.dumps(variant.recipe.to_dict(), sort_keys=True)
    assert len(set(recipes.values())) == len(recipes)
    for variant, reference, rows in plan.comparisons:
        assert {variant, reference} <= plan.variants.keys()
        assert rows == "all" or plan.rows[rows]


def test_the_sequence_part_is_what_its_experiment_varies() -> None:
    variants = script("ablate").PLANS["sequence"]().variants
    for inputs in ("hourly", "finer"):
        last, sequence = (variants[f"{inputs}, {part}"].recipe.network for part in ("last bar", "sequence"))
        assert (last.encoder, sequence.encoder) == ("none", "tcn")
        assert last.features == sequence.features
    finer, hourly = (variants[f"{kind}, last bar"].recipe.network.features for kind in ("finer", "hourly"))
    assert set(finer) - set(hourly) == set(script("ablate").FINE)


def test_a_record_is_added_as_one_line(tmp_path: Path) -> None:
    from riskml.learning.runs import append_record

    file = tmp_path / "results.jsonl"
    lines = [append_record(file, {"n": n, "text": "a\nb"}) for n in range(3)]
    assert file.read_text(encoding="utf-8").splitlines() == lines
    assert [json.loads(line)["n"] for line in lines] == [0, 1, 2]
