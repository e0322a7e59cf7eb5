"""Ray's cluster, tasks, and what the user sees of running work."""
