"""Training and evaluation: from a dataset to a run, from a run to a bundle, and what it is worth."""
