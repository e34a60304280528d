"""What it is trained on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from muloco_runner.config.checks import require, require_choice, require_positive
from muloco_runner.config.plain import UNNAMED_AT_DEFAULT

DataSource = Literal["python_source", "python_packages", "text", "prepared"]


@dataclass
class DataConfig:
    """Where tokens come from; the content itself is pinned by the corpus hash in each record."""

    source: str = "python_source"
    """python_source: the interpreter's own standard library, as bytes; python_packages: the source of pinned packages,
    as bytes; text: files under `path`, as bytes; prepared: a folder written by `muloco-data prepare`."""
    path: str | None = None
    """A file or folder for `text`, a prepared folder for `prepared`; unused, and so refused, for the others."""
    validation_fraction: float = 0.05
    """Share of the documents held out, chosen by the hash of their names. Fixed by the manifest for `prepared`."""
    validation_tokens: int = 65_536
    """Tokens of held-out text in the fixed evaluation set."""
    content_hash: str | None = field(default=None, metadata=UNNAMED_AT_DEFAULT)
    """Content hash of the corpus, 16 hex digits, filled in when a run is composed: it names the run in place of `path`,
    and other data is refused. Null for runs of earlier versions, named by the path, and for `python_source`."""

    def __post_init__(self) -> None:
        require_choice("data.source", self.source, get_args(DataSource))
        require_positive("data", validation_tokens=self.validation_tokens)
        require(
            0 < self.validation_fraction < 1,
            f"data.validation_fraction={self.validation_fraction}: must lie between 0 and 1",
        )
        if self.source in ("python_source", "python_packages"):
            require(
                self.path is None,
                f"data.path={self.path!r} has no effect with data.source={self.source}: "
                "drop it, or use data=text data.path=FOLDER",
            )
        else:
            require(bool(self.path), f"data.source={self.source} needs data.path: name the folder that holds the text")
        default = DataConfig.__dataclass_fields__["validation_fraction"].default
        require(
            self.source != "prepared" or self.validation_fraction == default,
            f"data.validation_fraction={self.validation_fraction} has no effect with data.source=prepared: "
            "drop it, or give it to `muloco-data prepare`",
        )
