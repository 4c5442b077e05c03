"""Features: one definition, causal by construction, the same in batch and live.

A feature is an expression over named inputs (:mod:`riskml.features.expr`). Inputs,
lookback and causality are read off the expression; nothing is declared twice. The
catalogue (:mod:`riskml.features.catalog`) is the ordered list that a bundle is made of.
"""
