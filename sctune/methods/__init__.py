"""Ways to find anomalies: what every one of them does (base), how they are found by name (registry), the families."""
