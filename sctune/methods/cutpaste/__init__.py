"""CutPaste (Li et al., CVPR 2021): a trunk that learns to tell what was pasted, and a Gaussian of its features."""
