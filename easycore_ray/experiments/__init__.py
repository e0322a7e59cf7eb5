"""Sweeps, studies and pipelines."""
