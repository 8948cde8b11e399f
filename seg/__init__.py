"""seg: experiments in 2-D image segmentation with Lightning and Hydra."""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would ask the network for news

__version__ = "0.1.0"
