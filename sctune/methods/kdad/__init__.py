"""KDAD: a cloner learns what a frozen network makes of normal images, and fails on others (Salehi et al. 2021)."""
