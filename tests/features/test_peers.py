"""The same features written in pandas and Polars, as the benchmark runs them, have the same values."""

import json
import subprocess
import sys

import pytest

from riskml.features.catalog import CATALOG
from riskml.features.nodes import Rolling, walk

# Half of the longest windows but the exponentially weighted ones is full after three weeks of minutes.
BARS = 32_000


@pytest.mark.slow
def test_pandas_and_polars_agree_on_every_feature_that_they_can_express(repository):
    script = repository / "training" / "benchmarks" / "bench_features.py"
    options = ["--quick", "--bars", str(BARS), "--markets", "3", "--threads", "1"]
    done = subprocess.run(
        [sys.executable, str(script), *options], stdout=subprocess.PIPE, text=True, check=True
    )
    result = json.loads(done.stdout.splitlines()[-1])
    endless = sum(
        any(isinstance(node, Rolling) and node.statistic == "ewm_mean" for node in walk(feature.expr))
        for feature in CATALOG
    )
    for peer in ("pandas", "polars"):
        found = result["agreement"][peer]
        assert found["differ"] == {}
        assert found["equal"] >= len(CATALOG) - endless
        assert found["finite"] > 0.8
    assert result["engines"]["ours"]["peak_gib"] < 6.0
