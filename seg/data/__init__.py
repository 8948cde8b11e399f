"""What a run learns from: sources of images and masks, their augmentation, and the loaders."""
