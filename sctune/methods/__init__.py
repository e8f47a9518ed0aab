"""Ways to find anomalies."""
