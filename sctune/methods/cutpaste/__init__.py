"""CutPaste (Li et al., CVPR 2021): a trunk that learns to see what was pasted, and a Gaussian of normal images on it."""
