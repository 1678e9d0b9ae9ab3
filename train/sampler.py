"""The order of the images in an epoch, for one process or for several that train together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch.distributed as dist
from torch.utils.data import Sampler


class EpochData(Protocol):
    """A data set whose items depend on the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""

    def __len__(self) -> int:
        """Number of items."""


class EpochSampler(Sampler[int]):
    """A new order each epoch that depends on nothing but the seed and the epoch, so that a resumed run repeats it.

    Args:
        data: What is drawn from; told of each epoch.
        seed: Of the order.
        world: Processes that share the images; each gets every ``world``-th. What does not divide is left out.
    """

    def __init__(self, data: EpochData, seed: int, world: int = 1) -> None:
        self.data, self.seed, self.world, self.epoch = data, seed, world, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch, and before workers start."""
        self.epoch = epoch
        self.data.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.data))
        return iter(order[_rank(self.world) :: self.world][: len(self)].tolist())

    def __len__(self) -> int:
        return len(self.data) // self.world


class ShareSampler(Sampler[int]):
    """Every ``world``-th image in order; the last ones repeat images, so that all processes take as many steps."""

    def __init__(self, length: int, world: int) -> None:
        self.length, self.world = length, world

    def __iter__(self) -> Iterator[int]:
        start = _rank(self.world)
        return iter([(start + step * self.world) % self.length for step in range(len(self))])

    def __len__(self) -> int:
        return -(-self.length // self.world)


def gathered(share: list[np.ndarray], length: int, world: int) -> list[np.ndarray]:
    """Rows of all processes that drew from a ``ShareSampler``, in the order of the images and without repeats.

    Args:
        share: Arrays of this process, equal in their first axis.
        length: Images in all.
        world: Processes.
    """
    if world == 1:
        return share
    shares: list[list[np.ndarray]] = [[]] * world
    dist.all_gather_object(shares, share)
    return [np.stack(parts, 1).reshape(-1, *parts[0].shape[1:])[:length] for parts in zip(*shares, strict=True)]


def _rank(world: int) -> int:
    # Asked when the order is drawn: the processes know each other only once training starts.
    return dist.get_rank() if world > 1 else 0
