"""Coresets: exact choice and files."""
