"""Import of images of any common layout into a dataset."""
