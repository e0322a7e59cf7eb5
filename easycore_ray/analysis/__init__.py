"""Tests of the paper's claims."""
