"""The running feature stream: gaps, halts, listings, joins and rows that come at the wrong time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from riskml.errors import DataError
from riskml.features.assemble import assemble_inputs
from riskml.features.evaluate import evaluate_features
from riskml.features.nodes import PRESENCE_INPUT, Lag, Rolling, walk
from riskml.scoring import Scorer
from riskml.scoring.live import KEEP_BARS, LiveFeatures
from riskml.units import HOUR

from .conftest import N_HISTORY, SYMBOLS, Feed, make_feed, slot


def without(rows: dict[str, np.ndarray], symbol: str) -> dict[str, np.ndarray]:
    return {name: values[rows["symbol"] != symbol] for name, values in rows.items()}


def only(rows: dict[str, np.ndarray], symbol: str) -> dict[str, np.ndarray]:
    return {name: values[rows["symbol"] == symbol] for name, values in rows.items()}


def step(scorer: Scorer, feed: Feed, number: int, halted: str = "") -> None:
    """One slot of the feed; a halted market has no bar in it."""
    for table in feed.tables:
        rows = feed.rows(table, number)
        scorer.observe(table, without(rows, halted) if table == "bars" else rows)
    scorer.close_bar(slot(number))


def window(scorer: Scorer) -> tuple[np.ndarray, np.ndarray]:
    """The feature window that the graph read last, and its mask."""
    values, mask = scorer._live.graph.buffer.window()
    return values.copy(), mask.copy()


def feature(scorer: Scorer, name: str) -> int:
    return [each.name for each in scorer.bundle.features].index(name)


def test_live_features_are_those_of_the_whole_history_at_once(
    make_warm: Callable[..., Scorer], feed: Feed
) -> None:
    scorer = make_warm()
    for number in range(N_HISTORY, N_HISTORY + 12):
        step(scorer, feed, number, halted="ETH" if number % 5 == 0 else "")
    live = scorer._live
    grid = np.arange(slot(0), slot(N_HISTORY + 12), HOUR)
    inputs = assemble_inputs(live.store, grid, live.markets, interval="1h", names=live.input_names)
    whole = evaluate_features(
        scorer.bundle.features, inputs, grid, interval="1h", tail=8, markets=live.markets
    )
    present = np.isfinite(inputs[PRESENCE_INPUT][-8:])
    mask = np.isfinite(whole) & present[:, :, np.newaxis]
    values, live_mask = window(scorer)
    np.testing.assert_array_equal(live_mask, mask)
    np.testing.assert_array_equal(values[mask], whole.astype(np.float32)[mask])
    assert mask.mean() > 0.5


def test_a_halted_market_is_masked_and_never_zero(make_warm: Callable[..., Scorer], feed: Feed) -> None:
    scorer = make_warm()
    step(scorer, feed, N_HISTORY, halted="ETH")
    _, mask = window(scorer)
    assert not mask[-1, 1].any()
    assert mask[-1, [0, 2]].any(axis=1).all()
    assert scorer.telemetry.value("missing_bars", label="ETH") == 1
    assert scorer.telemetry.value("missing_bars") == 1
    step(scorer, feed, N_HISTORY + 1)
    values, mask = window(scorer)
    level = feature(scorer, "log_har_24h")
    assert mask[-1, 1, level]  # 23 of 24 bars are there
    assert values[-1, 1, level] != 0.0


def test_windows_start_anew_after_a_halt_of_more_than_three_bars(
    make_warm: Callable[..., Scorer], feed: Feed
) -> None:
    short, long = make_warm(), make_warm()
    for scorer, halt in ((short, 3), (long, 4)):
        for number in range(N_HISTORY, N_HISTORY + 6):
            step(scorer, feed, number, halted="ETH" if number < N_HISTORY + halt else "")
    level = feature(short, "log_har_24h")
    assert window(short)[1][-1, 1, level]
    assert not window(long)[1][-1, 1, level]
    assert window(long)[1][-1, [0, 2], level].all()


def test_skipped_bars_are_masked_slots_and_counted(make_warm: Callable[..., Scorer], feed: Feed) -> None:
    scorer = make_warm()
    feed.observe(scorer, N_HISTORY + 2)
    scorer.close_bar(slot(N_HISTORY + 2))
    _, mask = window(scorer)
    assert mask[-3:].any(axis=(1, 2)).tolist() == [False, False, True]
    assert scorer.telemetry.value("missing_bars") == 2 * len(SYMBOLS)


def test_after_a_gap_longer_than_the_lookback_a_scorer_is_as_good_as_a_new_one(
    make_warm: Callable[..., Scorer], tiny_bundle: Path
) -> None:
    gap = make_warm()._live.stream.lookback_bars + 600
    later = make_feed(n_bars=N_HISTORY + gap + 300)
    first, last = N_HISTORY + gap, N_HISTORY + gap + 250
    old, new = make_warm(later), Scorer.load(tiny_bundle)
    for scorer in (old, new):
        later.observe(scorer, first, last)
        scorer.close_bar(slot(last))
        step(scorer, later, last + 1)
    for one, other in zip(window(old), window(new), strict=True):
        np.testing.assert_array_equal(one, other)
    assert window(old)[1][-1].any()
    np.testing.assert_array_equal(old.forecast.sigma, new.forecast.sigma)
    assert old.telemetry.value("missing_bars", label="BTC") == gap


def test_a_market_listed_yesterday_has_its_short_windows_only_and_changes_no_other(
    make_warm: Callable[..., Scorer], feed: Feed
) -> None:
    usual, listing = make_warm(), make_warm()
    more = make_feed((*SYMBOLS, "NEW"))
    for number in range(N_HISTORY, N_HISTORY + 26):
        listing.observe("bars", only(more.rows("bars", number), "NEW"))
        for scorer in (usual, listing):
            step(scorer, feed, number)
        np.testing.assert_array_equal(listing.forecast.sigma[:3], usual.forecast.sigma)
        for one, other in zip(window(listing), window(usual), strict=True):
            np.testing.assert_array_equal(one[:, :3], other)
    assert listing.forecast.markets == (*SYMBOLS, "NEW")
    mask = window(listing)[1][-1, 3]
    assert mask[feature(listing, "log_har_24h")]
    assert not mask[feature(listing, "log_har_7d")]


def test_a_market_that_joins_with_a_history_is_as_if_it_had_been_there_before(
    make_warm: Callable[..., Scorer],
) -> None:
    more = make_feed((*SYMBOLS, "NEW"))
    from_start, joins, usual = make_warm(more), make_warm(), make_warm()
    joins.observe("bars", only(more.rows("bars", 0, N_HISTORY - 1), "NEW"))
    for table in ("funding", "open_interest"):
        joins.observe(table, only(more.rows(table, 0, N_HISTORY - 1), "NEW"))
    for number in range(N_HISTORY, N_HISTORY + 3):
        for scorer in (from_start, joins):
            step(scorer, more, number)
        for table in more.tables:
            usual.observe(table, without(more.rows(table, number), "NEW"))
        usual.close_bar(slot(number))
    one, other = window(joins), window(from_start)
    np.testing.assert_array_equal(one[1][:, 3], other[1][:, 3])
    np.testing.assert_allclose(one[0][:, 3], other[0][:, 3], rtol=1e-6, atol=1e-7)
    assert one[1][-1, 3].sum() > 10
    for mine, theirs in zip(one, window(usual), strict=True):
        np.testing.assert_array_equal(mine[:, :3], theirs)


def test_a_joined_market_is_in_a_saved_state(
    make_warm: Callable[..., Scorer], tiny_bundle: Path, tmp_path: Path
) -> None:
    more = make_feed((*SYMBOLS, "NEW"))
    scorer = make_warm()
    for number in range(N_HISTORY, N_HISTORY + 30):
        step(scorer, more, number)
    restored = Scorer.load(tiny_bundle)
    restored.load_state(scorer.save_state(tmp_path / "state.npz"))
    for number in (N_HISTORY + 30, N_HISTORY + 31):
        for each in (scorer, restored):
            step(each, more, number)
        np.testing.assert_array_equal(restored.forecast.sigma, scorer.forecast.sigma)
        for one, other in zip(window(restored), window(scorer), strict=True):
            np.testing.assert_array_equal(one, other)
    assert restored.markets == (*SYMBOLS, "NEW")


def test_a_restored_scorer_reads_the_venues_that_it_read_before(tiny_bundle: Path, tmp_path: Path) -> None:
    feed = make_feed(n_bars=60)
    feed.tables["bars"]["venue"] = np.full(len(feed.tables["bars"]["ts"]), "binance")
    scorer = Scorer.load(tiny_bundle)
    feed.observe(scorer, 0, 40)
    scorer.close_bar(slot(40))
    restored = Scorer.load(tiny_bundle)
    restored.load_state(scorer.save_state(tmp_path / "state.npz"))
    assert {market.venue for market in scorer._live.markets} == {"binance"}
    for each in (scorer, restored):
        step(each, feed, 41)
    assert not restored._live.missing.any()
    np.testing.assert_array_equal(restored.forecast.sigma, scorer.forecast.sigma)


def test_a_state_of_an_older_layout_is_refused_with_the_way_out(warm: Scorer, tmp_path: Path) -> None:
    path = warm.save_state(tmp_path / "state.npz")
    with np.load(path) as archive:
        arrays = dict(archive)
    header = json.loads(str(arrays["header"])) | {"protocol": 1}
    np.savez(path, **(arrays | {"header": np.array(json.dumps(header))}))
    with pytest.raises(DataError, match=r"state protocol 1; this runtime reads 2.*start from the history"):
        warm.load_state(path)


def test_rows_at_the_wrong_time_are_counted_by_table(warm: Scorer, feed: Feed) -> None:
    rows = feed.rows("funding", N_HISTORY - 24, N_HISTORY - 1)
    revision = rows | {"known_at": rows["known_at"] + 30 * HOUR}
    between = rows | {"ts": rows["ts"] + HOUR, "known_at": rows["known_at"] + 30 * HOUR}
    n_rows = len(rows["ts"])
    n_newest = len(SYMBOLS)  # an hour after the newest row is no row between others
    for sent in (rows, revision, between):
        warm.observe("funding", sent)
    counted = {
        name: warm.telemetry.value(f"{name}_rows", label="funding")
        for name in ("duplicate", "revised", "out_of_order", "late")
    }
    assert counted == {
        "duplicate": n_rows,
        "revised": n_rows,
        "out_of_order": n_rows - n_newest,
        "late": n_rows,
    }
    assert f'riskml_revised_rows{{label="funding"}} {n_rows}' in warm.telemetry.to_prometheus()


@pytest.mark.parametrize(("delay", "late"), [(0, 3), (2, 3)])
def test_a_bar_that_comes_after_its_slot_was_closed_is_late_whenever_it_became_known(
    make_warm: Callable[..., Scorer], feed: Feed, delay: int, late: int
) -> None:
    scorer = make_warm()
    scorer.close_bar(slot(N_HISTORY))
    before = window(scorer)
    rows = feed.rows("bars", N_HISTORY)
    assert scorer.observe("bars", rows | {"known_at": rows["ts"] + delay * HOUR}).late == late
    for one, other in zip(window(scorer), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_row_that_becomes_known_later_is_not_late(warm: Scorer, feed: Feed) -> None:
    rows = feed.rows("open_interest", N_HISTORY - 1)
    later = rows | {"ts": rows["ts"] - HOUR // 2, "known_at": rows["ts"] + HOUR}
    assert warm.observe("open_interest", later).late == 0


def test_the_store_forgets_what_no_look_up_needs(make_warm: Callable[..., Scorer], feed: Feed) -> None:
    live = make_warm()._live
    bars = live.store.tables["bars"].rows
    reach = min(live._reach, KEEP_BARS)
    assert bars.length[: len(SYMBOLS)].tolist() == [min(N_HISTORY, reach + 1)] * len(SYMBOLS)
    live._prune(slot(N_HISTORY + reach - 1), 24)
    assert bars.length[: len(SYMBOLS)].tolist() == [1] * len(SYMBOLS)


def test_the_catalogue_keeps_nothing_for_a_market_before_its_first_bar(tiny_bundle: Path) -> None:
    """What a listing starts with is empty only if windows per market hang on the market's bars."""
    live = LiveFeatures(Scorer.load(tiny_bundle).bundle)
    nodes = walk(*(each.expr for each in live.bundle.features))
    windows = [node for node in nodes if isinstance(node, (Rolling, Lag)) and node.axis == "market"]
    assert windows
    assert all(node.segmented for node in windows)
