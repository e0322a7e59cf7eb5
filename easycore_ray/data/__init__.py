"""Datasets: shards, index, images, coresets as views, import."""
