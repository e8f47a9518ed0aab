"""Public names of the detector, its heads and its loss."""
