"""sctune: distributed hyperparameter search for open-set visual anomaly detection."""

__version__ = "0.1.0"
