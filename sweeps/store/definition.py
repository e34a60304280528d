"""What a sweep is: its pieces of work and where they run, and the file that says so.

The file is JSON lines. The first holds what is asked of all pieces of work at once (names, shapes, expected minutes,
groups of the status table) and what they have in common; then one line for each. A piece of work is read when it is
first asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from muloco_runner.config import ConfigError
from sweeps.engine.cluster_config import ClusterConfig
from sweeps.engine.tuning.study import Study
from sweeps.engine.work import Work
from sweeps.engine.works import Works
from sweeps.node.old_formats import head_now, work_now
from sweeps.store.moved_root import Move, move_of


@dataclass(frozen=True)
class Definition:
    """What a sweep is."""

    name: str
    cluster_name: str
    cluster: dict[str, Any]
    works: Sequence[Work]
    read_id: str = ""
    """Id of the file that it was read from; empty for a new definition."""
    move: Move | None = None
    """Where its root has come since the file was written; None where that is where it was. Its works know."""
    study: Study | None = None
    """By what rules the sweep goes on by its results; None where it does not."""

    @property
    def id(self) -> str:
        """The same for the same text."""
        return self.read_id or self._text_and_id[1]

    @property
    def text(self) -> str:
        return self._text_and_id[0]

    def read_cluster(self) -> ClusterConfig:
        return ClusterConfig.from_dict(self.cluster_name, self.cluster)

    @cached_property
    def _text_and_id(self) -> tuple[str, str]:
        works = [work.to_dict() for work in self.works]
        first = works[0] if works else {}
        common = {key: value for key, value in first.items() if all(work[key] == value for work in works)}
        own = [{key: value for key, value in work.items() if key not in common} for work in works]
        lines = [json.dumps(work, allow_nan=False, separators=(",", ":")) for work in own]
        head = {
            "name": self.name,
            "cluster_name": self.cluster_name,
            "cluster": self.cluster,
            "common": common,
            **({"study": self.study.to_dict()} if self.study is not None else {}),
            **Works.of(self.works).columns(),
        }
        whole = "\n".join([json.dumps(head, allow_nan=False), *lines])
        head["id"] = hashlib.blake2b(whole.encode(), digest_size=12).hexdigest()
        return "\n".join([json.dumps(head, allow_nan=False), *lines, ""]), head["id"]

    @classmethod
    def read(cls, path: Path, root: Path) -> Definition:
        """Reads the definition of a sweep below `root`, wherever that was when the file was written.

        A file that is damaged raises `ConfigError`; one that is not there `FileNotFoundError`.
        """
        head, *lines = path.read_bytes().split(b"\n")
        try:
            values = head_now(json.loads(head))
            common = values["common"]

            def read_values(position: int) -> dict[str, Any]:
                return work_now({**common, **json.loads(lines[position])})

            def read(position: int) -> Work:
                try:
                    found = read_values(position)
                    return Work.from_dict(move.work(found) if move is not None else found)
                except (ValueError, KeyError, TypeError) as error:
                    raise _damaged(f"{works.names[position]}: {error}") from None

            works = Works(values, read)
            if len(lines) != len(works) + 1:
                raise ValueError(f"it holds {len(lines) - 1} pieces of work instead of {len(works)}")
            move = move_of(read_values(0), values["name"], root) if works.names else None
            study = Study.from_dict(values["study"]) if "study" in values else None
            return cls(values["name"], values["cluster_name"], values["cluster"], works, values["id"], move, study)
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(str(error)) from None


def _damaged(why: str) -> ConfigError:
    return ConfigError(f"the sweep's definition is damaged ({why}): launch the sweep again, which rewrites it")
