"""The parts of an import: list a source, check its images, decide where rows go, write the shards."""
