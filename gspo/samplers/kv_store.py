"""Keys and values of sequences being sampled: buffers with room to spare, written in place.

A prompt's keys and values are kept once, whoever is behind it; each completion has a row of its own. Nothing is
copied to add a token. Rows that end are overwritten by the last ones, so only what moves is copied.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

FIRST_LENGTH = 64
"""Tokens of room at first; doubled when full, so that all growing together copies less than the final buffer."""


class Block:
    """[rows, K, length, D] buffers: the keys and values of each layer in turn, all of one number of rows and length.

    Layers may differ in heads and width. Room that was never written is zero: attention gives it weight 0, and 0 times
    an uninitialised number might not be a number.
    """

    def __init__(self) -> None:
        self.buffers: list[Tensor] = []

    def keys(self, layer: int) -> Tensor:
        return self.buffers[2 * layer]

    def values(self, layer: int) -> Tensor:
        return self.buffers[2 * layer + 1]

    def reserve(self, rows: int, length: int, limit: int, like: Sequence[Tensor]) -> None:
        """Room for `rows` sequences of `length` tokens; `limit` is the longest that will ever be asked for.

        The first call makes buffers shaped `like` these in heads, width and dtype.
        """
        if not self.buffers:
            length = max(length, min(FIRST_LENGTH, limit))
            self.buffers = [t.new_zeros(rows, t.shape[1], length, t.shape[3]) for t in like]
        held_rows, _, held_length, _ = self.buffers[0].shape
        if rows <= held_rows and length <= held_length:
            return
        if length > held_length:
            length = max(length, min(2 * held_length, limit))
        for i, old in enumerate(self.buffers):
            new = old.new_zeros(max(rows, held_rows), old.shape[1], max(length, held_length), old.shape[3])
            new[:held_rows, :, :held_length] = old
            self.buffers[i] = new

    def put(self, first_row: int, content: Sequence[Tensor]) -> None:
        """Write sequences from their first token on, into rows from `first_row` on."""
        for buffer, new in zip(self.buffers, content, strict=True):
            buffer[first_row : first_row + len(new), :, : new.shape[2]] = new

    def keep(self, order: np.ndarray) -> None:
        """Row `order[i]` becomes row i; rows that stay where they are cost nothing."""
        target = np.flatnonzero(order != np.arange(len(order)))
        if not len(target):
            return
        device = self.buffers[0].device
        to, source = (torch.from_numpy(rows).to(device) for rows in (target, order[target]))
        for buffer in self.buffers:
            buffer[to] = buffer[source]


def closed_up(kept: np.ndarray) -> np.ndarray:
    """bool [R] -> the rows to keep, in places 0, 1, ...: those behind the new end fill the gaps, the others stay."""
    count = int(kept.sum())
    order = np.arange(count)
    order[~kept[:count]] = count + np.flatnonzero(kept[count:])
    return order
