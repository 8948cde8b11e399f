"""Training of one run with Lightning."""
