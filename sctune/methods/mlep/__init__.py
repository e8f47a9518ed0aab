"""MLEP, margin learning embedded prediction, in an image form of our own (`mlep`)."""
