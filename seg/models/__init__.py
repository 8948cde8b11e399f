"""The networks: images (B, C, H, W) in, logits (B, K, H, W) out."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from seg.models.external import Peer
    from seg.models.fcn import FCN
    from seg.models.network import Network
    from seg.models.segnet import SegNet
    from seg.models.unet import UNet
    from seg.models.unetpp import NestedUNet

__all__ = ["FCN", "NestedUNet", "Network", "Peer", "SegNet", "UNet"]
# Modules are imported when a name is first used, since PyTorch takes seconds
__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "external": ["Peer"],
        "fcn": ["FCN"],
        "network": ["Network"],
        "segnet": ["SegNet"],
        "unet": ["UNet"],
        "unetpp": ["NestedUNet"],
    },
)
