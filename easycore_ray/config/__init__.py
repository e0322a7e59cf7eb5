"""Configurations of every stage, and what of them is identity."""
