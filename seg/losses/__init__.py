"""Losses: ``loss(logits, mask)`` -> the mean over what is not ignored, in float32 (float64 stays so).

logits (B, K, H, W): one (sigmoid) or two (softmax) for two classes, K for K classes.
mask (B, H, W) int64 of class indices, or (B, K, H, W) of 0 and 1 for labels that overlap, each pixel of
each label then a two-class problem of its own; 255 = ignored, in both. A value beside these is an error.
"""

from seg.losses.cldice import ClDice as ClDice
from seg.losses.cross_entropy import CrossEntropy as CrossEntropy
from seg.losses.cross_entropy import Focal as Focal
from seg.losses.cross_entropy import WeightedBCE as WeightedBCE
from seg.losses.dice import Dice as Dice
from seg.losses.dice import Jaccard as Jaccard
from seg.losses.dice import Tversky as Tversky
from seg.losses.lovasz import Lovasz as Lovasz
from seg.losses.weight_map import WeightMap as WeightMap
from seg.losses.weighted_sum import Sum as Sum
from seg.losses.weighted_sum import Term as Term
from seg.losses.weighted_sum import judge as judge
