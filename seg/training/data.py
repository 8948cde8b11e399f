"""Data of a run as Lightning's Trainer takes it."""

import lightning as L
from torch.utils.data import DataLoader

from seg.data.datamodule import DataModule


class TrainerData(L.LightningDataModule):
    """Loaders of a ``DataModule``, each with the share of this process.

    Args:
        data: the data of the run.
    """

    def __init__(self, data: DataModule) -> None:
        super().__init__()
        self.data = data

    def setup(self, stage: str) -> None:
        """Tell the data which share of it this process loads."""
        assert self.trainer is not None
        self.data.rank, self.data.world = self.trainer.global_rank, self.trainer.world_size

    def train_dataloader(self) -> DataLoader:
        return self.data.train_dataloader()

    def val_dataloader(self) -> DataLoader:
        return self.data.val_dataloader()

    def test_dataloader(self) -> DataLoader:
        return self.data.test_dataloader()
