"""What a run takes of one rank's memory, from its configuration alone: standard library only, for login nodes.

Parameters, optimizer state and anchors stay; to them comes the peak phase of a step: the head with all activations
kept, the backward pass of the last or the first block, the sum over replicas, the inner optimizer, or the outer step.
Counted are tensors, as torch's allocator sees them; the driver's context, libraries and fragmentation come on top (see
`usable_bytes`), and on a CPU the copy from which a checkpoint is written.

The counts hold where a model's matrices are large beside its constants: from about a million parameters on.
"""

from muloco_runner.memory.estimate import MemoryEstimate, checkpoint_bytes, estimate_memory, usable_bytes
from muloco_runner.memory.placement import Placement

__all__ = [
    "MemoryEstimate",
    "Placement",
    "checkpoint_bytes",
    "estimate_memory",
    "usable_bytes",
]
