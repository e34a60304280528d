"""Which rank orthogonalises which matrix: whole matrices, dealt so that every rank has about the same work."""

from __future__ import annotations


class Owners:
    """Deals matrices to `num_ranks` ranks; every rank that deals the same matrices in the same order agrees."""

    def __init__(self, num_ranks: int) -> None:
        self.loads = [0.0] * num_ranks
        """Arithmetic of a step that each rank has so far."""

    def deal(self, num_matrices: int, rows: int, columns: int) -> list[int]:
        """The owner of each of these matrices: always the rank with the least to do.

        Deal large matrices first: then no rank has more than 4/3 of the best possible (Graham 1969).
        """
        short, long = sorted((rows, columns))
        cost = short * short * (3.0 * long + short)
        owners = []
        for _ in range(num_matrices):
            owner = min(range(len(self.loads)), key=self.loads.__getitem__)
            self.loads[owner] += cost
            owners.append(owner)
        return owners


def rounds_of(owners: list[int], num_ranks: int, at_once: int) -> list[list[list[int]]]:
    """Rounds in which every rank works on at most `at_once` of its matrices: round -> rank -> indices of matrices."""
    of_rank = [[index for index, owner in enumerate(owners) if owner == rank] for rank in range(num_ranks)]
    longest = max(map(len, of_rank))
    return [[mine[start : start + at_once] for mine in of_rank] for start in range(0, longest, at_once)]
