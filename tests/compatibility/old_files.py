"""What version 0.1.0 wrote, before the packages were divided into rooms, laid out as it would lie on a user's disk.

    written/study     runs of each algorithm: finished, diverged, stopped with a checkpoint, not started
    written/sweep     a sweep whose controller and slots were killed: two runs done, one killed behind a checkpoint, one
                      job pending, one run waiting, one held by hand; a snapshot, and a ledger that goes on after it
    written/whole     the stopped and the killed run as they were without interruption
    written/prepared  the manifest that `muloco-data prepare` made of the text
    expected.json     what the old code said of all that, and how the sweep was launched

All of it was written under /srv/study. A user's paths stay what they were; here they become those of a temporary
folder, so that the checksums of the lines in which they stand are computed anew.
"""

import hashlib
import json
import platform
import random
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

WRITTEN = Path(__file__).parent / "written"
ROUNDING = 0.02
"""Relative bound on losses on another machine than the one that wrote them, where sums are taken in other orders."""


@dataclass(frozen=True)
class Old:
    """The files in their place, and what is known of them."""

    root: Path
    expected: dict[str, Any]

    @property
    def sweep(self) -> Path:
        return next((self.root / "sweep" / "sweeps").iterdir())

    def run_folders(self) -> list[Path]:
        return sorted(path.parent for path in self.root.glob("*/runs/*/config.yaml"))

    def same(self, losses: list[float | None]) -> Any:
        """What compares equal to `losses`: to the bit where the machine and torch are those that wrote them."""
        machine = self.expected["machine"]
        here = {"torch": torch.__version__, "capability": torch.backends.cpu.get_cpu_capability(), "model": cpu_model()}
        return losses if here == machine else pytest.approx(losses, rel=ROUNDING)


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2].strip() for line in lines if line.startswith("model name")), "")


def lay_out(root: Path) -> Old:
    """Puts the old files and the text of their runs into an empty folder."""
    expected = json.loads((WRITTEN / "expected.json").read_text())
    name = next((WRITTEN / "sweep" / "sweeps").iterdir()).name
    # A sweep's jobs are told apart from those of a sweep of its name elsewhere.
    digits = hashlib.sha256(str(root / "sweep" / "sweeps" / name).encode()).hexdigest()[:6]
    new_names = {expected["root"]: str(root), expected["tag_prefix"]: f"{name}-{digits}-"}
    for source in WRITTEN.rglob("*"):
        target = root / renamed(str(source.relative_to(WRITTEN)), new_names)
        if source.is_dir():
            target.mkdir(exist_ok=True)
        elif source.name == "checkpoint.tar.xz":
            target.parent.mkdir(parents=True, exist_ok=True)
            with tarfile.open(source) as archive:
                archive.extractall(target.parent, filter="data")
        elif source != WRITTEN / "expected.json":
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(renamed(source.read_text(), new_names))
    sign_again(root / "sweep" / "sweeps" / name)
    write_text(root / "text")
    return Old(root, expected)


def renamed(text: str, names: dict[str, str]) -> str:
    for before, after in names.items():
        text = text.replace(before, after)
    return text


def sign_again(sweep: Path) -> None:
    """Puts the right checksums into the ledger and the snapshot, whose paths are others now."""
    lines = []
    for line in (sweep / "ledger.jsonl").read_text().splitlines():
        body = "{" + line.partition(",")[2]
        lines.append(f'{{"crc":{zlib.crc32(body.encode())},{body[1:]}\n')
    (sweep / "ledger.jsonl").write_text("".join(lines))
    head, *runs = (sweep / "snapshot.jsonl").read_text().split("\n")[1:]
    values = json.loads(head)
    end = values["end"]
    last = lines[end["lines"] - 1].encode()
    offset = sum(len(line) for line in lines[: end["lines"]])
    end.update(offset=offset, last_length=len(last), last_crc=zlib.crc32(last))
    body = "\n".join([json.dumps(values), *runs])
    first = json.dumps({"crc": zlib.crc32(body.encode()), "length": len(body)})
    (sweep / "snapshot.jsonl").write_text(f"{first}\n{body}")


def write_text(folder: Path) -> None:
    """The text on which the old runs were trained."""
    generator = random.Random(0)
    words = ["gradient", "anchor", "worker", "outer", "step", "the", "a", "of", "moves"]
    folder.mkdir()
    for number in range(16):
        sentences = (" ".join(generator.choices(words, k=9)) + ".\n" for _ in range(8))
        (folder / f"document-{number:02d}.txt").write_text("".join(sentences))
