"""Values of masks that have a meaning of their own."""

IGNORE = 255  # mask value of the pixels that losses and metrics leave out
