"""Work that CPU threads share by whole items: none waits for another within one, as threads of one product do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")


def share_over_threads(work: Callable[[Sequence[Item]], None], items: Sequence[Item]) -> None:
    """Call `work` on all items, some on each of torch's threads; gradients are not recorded.

    Where there are more threads than items, each item has several for its products.
    """
    threads = torch.get_num_threads()
    workers = min(threads, len(items))
    if workers < 2:
        work(items)
        return
    quietly = torch.no_grad()(work)
    try:
        with ThreadPoolExecutor(workers, "share", torch.set_num_threads, (threads // workers,)) as executor:
            for done in [executor.submit(quietly, items[first::workers]) for first in range(workers)]:
                done.result()
    finally:
        # The setting is each thread's own, but later threads start with the last one made.
        torch.set_num_threads(threads)
