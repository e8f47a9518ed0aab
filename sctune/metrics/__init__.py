"""Figures of quality: AUROC, average precision, thresholds, errors of them, ties."""
