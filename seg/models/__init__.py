"""The networks: images (B, C, H, W) in, logits (B, K, H, W) out."""

from seg.models.external import Peer
from seg.models.fcn import FCN
from seg.models.network import Network
from seg.models.segnet import SegNet
from seg.models.unet import UNet
from seg.models.unetpp import NestedUNet

__all__ = ["FCN", "NestedUNet", "Network", "Peer", "SegNet", "UNet"]
