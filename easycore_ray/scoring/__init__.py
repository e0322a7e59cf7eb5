"""Scoring runs, score tables and their reduction to hardness tables."""
