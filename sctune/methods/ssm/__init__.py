"""SSM: an image is made anew from what masks show of it, and where that fails is anomalous (Huang et al. 2022)."""
