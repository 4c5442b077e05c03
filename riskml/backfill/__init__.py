"""Backfill: what the live scorer would have said, over a whole history."""

from riskml.backfill.forecasts import ForecastHistory, forecast_history
from riskml.backfill.local import BackfillReport, backfill
from riskml.backfill.score_at import score_at, warm_scorer

__all__ = ["BackfillReport", "ForecastHistory", "backfill", "forecast_history", "score_at", "warm_scorer"]
