"""The networks: images (B, C, H, W) in, logits (B, K, H, W) out."""

from seg.models.fcn import FCN
from seg.models.nested import NestedUNet
from seg.models.peer import Peer
from seg.models.segnet import SegNet
from seg.models.unet import UNet

__all__ = ["FCN", "NestedUNet", "Peer", "SegNet", "UNet"]
