"""Order of the training samples: a function of seed and epoch."""

import os
import signal
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


def apart(worker: int) -> None:
    """Keeps a loader process from signals that are meant for the run, which ends after its step by itself.

    Ctrl-C and ``timeout`` reach a whole group of processes; SLURM's ``--signal`` all of a job's step.
    """
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    for number in (s for s in signal.Signals if s.name in ("SIGINT", "SIGUSR1", "SIGUSR2")):
        signal.signal(number, signal.SIG_IGN)


class EpochSampler(Sampler):
    """Order of the samples as a pure function of (seed, epoch); each process takes every world-th one.

    Lightning calls ``set_epoch``. Yields (epoch, index), so that a sample knows its epoch in any worker.

    Attributes:
        skip: samples of this process that the next pass leaves out, as an epoch that is taken up does.
    """

    def __init__(self, size: int, seed: int, shuffle: bool, rank: int = 0, world: int = 1) -> None:
        self.size, self.seed, self.shuffle = size, seed, shuffle
        self.rank, self.world, self.epoch, self.skip = rank, world, 0, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.arange(self.size)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
            order = np.resize(order, -(-self.size // self.world) * self.world)  # equal shares
        own, self.skip = order[self.rank :: self.world][self.skip :], 0
        yield from ((self.epoch, int(i)) for i in own)

    def __len__(self) -> int:
        own = self.size - self.rank
        return -(-(self.size if self.shuffle else own) // self.world)
