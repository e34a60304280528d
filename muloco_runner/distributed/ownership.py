"""Which rank orthogonalises which matrix: each matrix has one owner, and every rank about the same work."""

from __future__ import annotations


class OwnerAssignment:
    """Assigns matrices to `num_ranks` ranks; ranks that assign the same matrices in the same order agree."""

    def __init__(self, num_ranks: int) -> None:
        self.loads = [0.0] * num_ranks
        """Work that each rank has so far: of Muon, multiplications of one step up to a factor."""

    def assign(self, num_matrices: int, rows: int, columns: int, blocks: int = 1) -> list[int]:
        """Return the owner of each of `num_matrices` matrices of `blocks` blocks (rows, columns): always the rank with
        the least work.

        Assign large matrices first: then no rank has more than 4/3 of the best possible (Graham 1969).
        """
        short, long = sorted((rows, columns))
        cost = blocks * short * short * (3.0 * long + short)
        return [self.add(cost) for _ in range(num_matrices)]

    def add(self, cost: float) -> int:
        """Return the rank with the least work, to which this much is added."""
        owner = min(range(len(self.loads)), key=self.loads.__getitem__)
        self.loads[owner] += cost
        return owner


def rounds_of(owners: list[int], num_ranks: int, at_once: int) -> list[list[list[int]]]:
    """Return rounds in which every rank works on at most `at_once` of its matrices: [round][rank] -> indices."""
    of_rank = [[index for index, owner in enumerate(owners) if owner == rank] for rank in range(num_ranks)]
    longest = max(map(len, of_rank))
    return [[own[start : start + at_once] for own in of_rank] for start in range(0, longest, at_once)]
