"""Everything that a GPU has to tell, in minutes: `muloco-train --check-gpu`, and Muon's step against its peers.

    python -m benchmarks.gpu_check [SECTION ...] [--out FILE]

Needs torch, triton and numpy alone; the peers' table also rich and pyyaml. Runs at tiny sizes on a CPU.
"""

from __future__ import annotations

import statistics
import sys
from importlib.util import find_spec
from pathlib import Path

from muloco_runner.machine_check.findings import Findings
from muloco_runner.machine_check.sections import SECTIONS, Section, main
from muloco_runner.machine_check.timing import Machine

MOST_OF_FLOOR = 1.25
"""What is hoped for of our step's time over the floor's."""
OURS = ("ours", "ours, graph")


def peers(machine: Machine, findings: Findings) -> None:
    """Muon's step at 150m, 416m and 3.1b beside its peers' and the floor."""
    missing = [name for name in ("rich", "yaml") if find_spec(name) is None]
    if missing:
        findings.add("peers", f"needs {' and '.join(missing)}", verdict="absent")
        return
    here = Path(__file__).parent
    sys.path += [str(here), str(here.parent)]  # where a script of that folder finds its parts
    from benchmarks import muon_step
    from benchmarks.muon_parts.floors import H100, Ladder

    if not machine.is_gpu:
        small = Ladder("tiny", {(48, 48): 4, (132, 48): 2}, 0)
        for peer in muon_step.measure(small, machine.device, 3, [muon_step.LOOP, "ours"]):
            findings.holds(f"{peer.name}, steps", len(peer.seconds) == 3)
        return
    for name in ("150m", "416m", "3.1b"):
        ladder = Ladder.of(name)
        found = {peer.name: peer for peer in muon_step.measure(ladder, machine.device, 20)}
        floor = min(muon_step.floors_of(ladder, H100).values())
        for peer in found.values():
            if peer.words:
                findings.add(f"{name}, {peer.name}", peer.words, verdict="absent")
            else:
                milliseconds = 1e3 * statistics.median(peer.seconds)
                findings.add(f"{name}, {peer.name}", milliseconds, f"ms, error {peer.error:.4f}")
        own = min(statistics.median(found[mine].seconds) for mine in OURS)
        others = [statistics.median(peer.seconds) for peer in found.values() if peer.seconds and peer.name not in OURS]
        findings.hoped(f"{name}, the floor over ours", floor / own, 1 / MOST_OF_FLOOR)
        findings.hoped(f"{name}, the fastest peer over ours", min(others) / own, 1.0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], {**SECTIONS, "peers": Section(peers, 120)}, "python -m benchmarks.gpu_check"))
