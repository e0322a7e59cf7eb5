"""The mathematics of easycore_ray: pure functions on torch tensors and numpy arrays, no files and no Ray."""
