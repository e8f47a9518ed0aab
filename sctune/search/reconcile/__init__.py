"""The record against MLflow and the checkpoints: compare, and mend."""
