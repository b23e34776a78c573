"""Deterministic simulation of the data path: see docs/simulation.md."""
