"""The model store: the catalog of names, weights on disk, and the way they come there."""
