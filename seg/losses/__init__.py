"""Losses: ``loss(logits, mask, gaps=None)`` returns the mean over the pixels that are not ignored.

Every loss computes in float32 (float64 stays) and returns a scalar tensor.

Args:
    logits: (B, K, H, W). For two classes K is 1 (sigmoid) or 2 (softmax), for more K is their number.
    mask: (B, H, W) int64 class indices; or (B, K, H, W) of 0 and 1 for labels that overlap, of which each
        is a two-class problem. 255 is ignored in both; any other value is an error.
    gaps: weight map of the mask's shape, where the batch has one. Only WeightMap uses it.
"""

from seg.losses.additive import AdditiveLoss as AdditiveLoss
from seg.losses.cldice import ClDice as ClDice
from seg.losses.cross_entropy import CrossEntropy as CrossEntropy
from seg.losses.cross_entropy import Focal as Focal
from seg.losses.cross_entropy import WeightedBCE as WeightedBCE
from seg.losses.dice import Dice as Dice
from seg.losses.dice import Jaccard as Jaccard
from seg.losses.dice import Tversky as Tversky
from seg.losses.lovasz import Lovasz as Lovasz
from seg.losses.weight_map import WeightMap as WeightMap
from seg.losses.weighted_sum import LossOfBands as LossOfBands
from seg.losses.weighted_sum import Sum as Sum
from seg.losses.weighted_sum import SumTerm as SumTerm
from seg.losses.weighted_sum import compute_loss as compute_loss
from seg.losses.weighted_sum import term_names as term_names
