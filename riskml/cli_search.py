"""The verb that searches a recipe's keys; apart from the others because it is long work of its own."""

from __future__ import annotations

from argparse import Namespace

from riskml.cli_output import Outcome, Progress, text_table
from riskml.cli_verbs import optional_imports

SHOWN_TRIALS = 10


def search(options: Namespace, progress: Progress) -> Outcome:
    """Search a recipe's keys; the result is a recipe file for 'riskml fit'."""
    with optional_imports():
        from riskml.learning.search import TRIALS_CSV, TRIALS_JSON
        from riskml.learning.search import search as run
    found = run(
        options.data,
        options.space,
        options.out,
        n_trials=options.trials,
        storage=options.storage,
        fit_end=options.fit_end,
        calibrate_end=options.calibrate_end,
        seed=options.seed,
        tracking_uri=options.tracking_uri,
        progress=progress,
    )
    done = sorted(
        (row for row in found.trials if row.value is not None), key=lambda row: (row.value, row.number)
    )
    keys = list(found.best_trial.parameters)
    rows = [
        [row.number, row.value, *(row.parameters.get(key) for key in keys)] for row in done[:SHOWN_TRIALS]
    ]
    failed = len(found.trials) - len(done)
    title = f"{len(done)} trials complete, {failed} failed; the best by {found.objective} (lower is better)"
    counts = {"trials": len(found.trials), "complete": len(done), "failed": failed}
    extra = {
        "objective": found.objective,
        "best": found.best_trial.to_dict(),
        "trials": [row.to_dict() for row in found.trials],
    }
    outputs = (found.best_file, found.path / TRIALS_CSV, found.path / TRIALS_JSON)
    return Outcome(
        f"{title}\n{text_table(['trial', found.objective, *keys], rows)}", outputs, counts, extra=extra
    )
