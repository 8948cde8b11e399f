"""A trained run applied: tiling, test-time augmentation, ensembles, outputs and export."""
