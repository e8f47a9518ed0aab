"""SAOE: an ensemble over synthetic anomalies with outlier exposure, in our own reading (`saoe`)."""
