"""The training loop on workers: run, commit, resume, load data."""
