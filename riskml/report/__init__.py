"""Reports: what bundles, runs, backfills and replays say, for people and for release decisions."""
