"""The networks: images (B, C, H, W) in, logits (B, K, H, W) out, for any H and W."""

from seg.models.fcn import FCN
from seg.models.nested import UNetPP
from seg.models.unet import UNet

__all__ = ["FCN", "UNet", "UNetPP"]
