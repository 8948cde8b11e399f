"""Order of the training samples as a function of seed and epoch."""

import os
import signal
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


def ignore_signals(worker: int) -> None:
    """Ignore signals in a DataLoader worker: the main process finishes its step and ends its workers.

    Ctrl-C and ``timeout`` reach a whole process group, SLURM's ``--signal`` all processes of a job step.
    """
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    for number in (s for s in signal.Signals if s.name in ("SIGINT", "SIGUSR1", "SIGUSR2")):
        signal.signal(number, signal.SIG_IGN)


class EpochSampler(Sampler):
    """Order of the samples as a pure function of (seed, epoch); each rank takes every ``world``-th sample.

    Lightning calls ``set_epoch``. Yields (epoch, index), so that a sample knows its epoch in any worker.

    Attributes:
        skip: samples of this rank that the next pass leaves out, as a resumed epoch does.
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
