"""References: methods that train nothing, which a trained one must beat (`gaussian`, `patch_bank`)."""
