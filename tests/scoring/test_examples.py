"""The integration examples and the benchmark run as their README says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SERVING = Path(__file__).resolve().parents[2] / "serving"


def run(*command: str | Path) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_python_risk_engine_decides_on_prices_and_saves_its_state(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    printed = run(sys.executable, SERVING / "examples" / "risk_engine.py", bundle)
    assert "long   normal" in printed
    assert "riskml_scored_accounts 384" in printed
    assert (tmp_path / "scorer-state.npz").is_file()


@pytest.mark.slow
def test_the_latency_benchmark_ends_in_one_line_of_json_and_writes_it(
    tiny_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "latency.json"
    printed = run(
        sys.executable, SERVING / "benchmarks" / "latency.py", tiny_bundle, "--seconds", "0.01", "--out", out
    )
    last = json.loads(printed.splitlines()[-1])
    assert last == json.loads(out.read_text())
    assert {"date", "command", "machine", "versions", "figures"} <= last.keys()
    assert last["figures"]["score 100"]["ratio"] > last["figures"]["identity call"]["ratio"]


@pytest.mark.slow
def test_the_feature_benchmark_ends_in_one_line_of_json_and_writes_it(tmp_path: Path) -> None:
    script, out = SERVING / "benchmarks" / "feature_update.py", tmp_path / "update.json"
    printed = run(sys.executable, script, "--markets", "3,5", "--bars", "30", "--out", out)
    last = json.loads(printed.splitlines()[-1])
    assert last == json.loads(out.read_text())
    assert [size["n_markets"] for size in last["sizes"]] == [3, 5]
    for size in last["sizes"]:
        parts = [size["figures"][name]["p50_ms"] for name in ("observe", "look up", "features")]
        assert 0.0 < sum(parts) <= 2.0 * size["figures"]["bar"]["p50_ms"]


def test_committed_latency_results_name_machine_date_and_command() -> None:
    results = sorted((SERVING / "results").glob("latency-*.json"))
    assert results
    for file in results:
        result = json.loads(file.read_text())
        assert result["machine"]["processor"]
        assert result["command"].startswith("python serving/benchmarks/latency.py")
        assert result["date"].startswith(file.stem.removeprefix("latency-")[:10])


@pytest.mark.slow
def test_node_reads_the_manifest_and_reproduces_the_golden_cases(tiny_bundle: Path) -> None:
    example = SERVING / "examples" / "node"
    if shutil.which("node") is None or not (example / "node_modules" / "onnxruntime-node").is_dir():
        pytest.skip("needs Node and 'npm install --ignore-scripts' in serving/examples/node")
    last = json.loads(run("node", example / "score.mjs", tiny_bundle).splitlines()[-1])
    assert last["ok"] is True
