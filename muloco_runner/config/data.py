"""What it is trained on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from muloco_runner.config.checks import require, require_choice, require_positive
from muloco_runner.config.outside import FromOutside, OneTarget
from muloco_runner.config.plain import UNNAMED_AT_DEFAULT

_SET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")

DataSource = Literal["python_source", "python_packages", "text", "prepared", "target"]


@dataclass
class DataConfig:
    """Where tokens come from; the content itself is pinned by the corpus hash in each record."""

    source: str = "python_source"
    """python_source: the interpreter's own standard library, as bytes; python_packages: the source of pinned packages,
    as bytes; text: files under `path`, as bytes; prepared: a folder written by `muloco-data prepare`; target: what a
    function of the user's yields (`TargetDataConfig`)."""
    path: str | None = None
    """A file or folder for `text`, a prepared folder for `prepared`; unused, and so refused, for the others."""
    validation_fraction: float = 0.05
    """Share of the documents held out, chosen by the hash of their names. Fixed by the manifest for `prepared`."""
    validation_tokens: int = 65_536
    """Tokens of held-out text in the fixed evaluation set; of fewer all are taken, and the run says so."""
    content_hash: str | None = field(default=None, metadata=UNNAMED_AT_DEFAULT)
    """Content hash of the corpus, 16 hex digits, filled in when a run is composed: it names the run in place of `path`,
    and other data is refused. Null for runs of earlier versions, named by the path, and for `python_source`."""
    mixture: Any = field(default=None, metadata=UNNAMED_AT_DEFAULT)
    """{FOLDER: WEIGHT, ...}: several prepared folders in place of `path`. A weight is the folder's share of the
    sequences, once all are scaled to a sum of 1. (OmegaConf takes no mapping in place of None but under Any.)"""
    validation: Any = field(default=None, metadata=UNNAMED_AT_DEFAULT)
    """{NAME: PATH, ...}: further validation sets, whose losses are recorded beside the main one's. A path is a prepared
    folder, of which the held-out documents are taken, or, for a run on bytes, a file or folder of text, taken whole. Of
    each `validation_tokens` tokens count."""
    validation_hash: str | None = field(default=None, metadata=UNNAMED_AT_DEFAULT)
    """Content of these sets and their names, 16 hex digits, filled in when a run is composed: it names the run in place
    of their paths, and other sets are refused."""
    name: str = field(default="corpus", metadata=UNNAMED_AT_DEFAULT)
    """corpus, or target where a function of the user's makes the documents."""

    def __post_init__(self) -> None:
        require_choice("data.source", self.source, get_args(DataSource))
        require_positive("data", validation_tokens=self.validation_tokens)
        require(
            0 < self.validation_fraction < 1,
            f"data.validation_fraction={self.validation_fraction}: must lie between 0 and 1",
        )
        self._check_mixture()
        self._check_validation()
        require(
            (self.source == "target") == isinstance(self, FromOutside),
            f"data.source={self.source}: target goes with a function, and a function with it: a file under conf/data "
            "with `_target_`",
        )
        if self.source in ("python_source", "python_packages", "target"):
            require(
                self.path is None,
                f"data.path={self.path!r} has no effect with data.source={self.source}: "
                "drop it, or use data=text data.path=FOLDER",
            )
        elif self.mixture is None:
            require(bool(self.path), f"data.source={self.source} needs data.path: name the folder that holds the text")
        default = DataConfig.__dataclass_fields__["validation_fraction"].default
        require(
            self.source != "prepared" or self.validation_fraction == default,
            f"data.validation_fraction={self.validation_fraction} has no effect with data.source=prepared: "
            "drop it, or give it to `muloco-data prepare`",
        )

    def _check_mixture(self) -> None:
        if self.mixture is None:
            return
        require(
            isinstance(self.mixture, Mapping) and len(self.mixture) > 0,
            f"data.mixture={self.mixture}: must be prepared folders and their weights, as {{FOLDER: WEIGHT, ...}}",
        )
        require(
            self.source == "prepared" and self.path is None,
            "data.mixture takes prepared folders in place of data.path: use data=prepared, and drop data.path",
        )
        for folder, weight in self.mixture.items():
            is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
            require(is_number, f"data.mixture: {folder}: {weight!r} is no weight: use a positive number")
            require_positive("data.mixture", **{str(folder): weight})
        self.mixture = {str(folder): float(weight) for folder, weight in self.mixture.items()}

    def _check_validation(self) -> None:
        if self.validation is None:
            require(
                self.validation_hash is None, f"data.validation_hash={self.validation_hash} needs data.validation too"
            )
            return
        require(
            isinstance(self.validation, Mapping) and len(self.validation) > 0,
            f"data.validation={self.validation}: must be names and folders, as {{NAME: FOLDER, ...}}",
        )
        for name, path in self.validation.items():
            require(
                _SET_NAME.fullmatch(str(name)) is not None,
                f"data.validation: {name!r} is no name of a set: use up to 40 letters, digits, - and _",
            )
            require(
                isinstance(path, str) and bool(path),
                f"data.validation: {name}: {path!r} is no path: name a prepared folder or one of text",
            )
        # In whatever order they are written, they are the same sets.
        self.validation = {str(name): self.validation[name] for name in sorted(self.validation, key=str)}

    @property
    def folders(self) -> list[str]:
        """The prepared folders that are read."""
        if self.source != "prepared":
            return []
        return [str(self.path)] if self.mixture is None else list(self.mixture)


@dataclass
class TargetDataConfig(OneTarget, DataConfig):
    """Documents that a function from outside the package yields: `str` or `bytes` each, read as bytes."""

    source: str = "target"
    name: str = "target"
    facts: Any = None
    """What was found when it was tried; filled in by whoever composes the run. No part of its name."""

    not_in_hash = ("label", "facts")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_target("data", {})
        if self.facts:
            self.content_hash = self.facts["content_hash"]


DATA: dict[str, type[DataConfig]] = {"corpus": DataConfig, "target": TargetDataConfig}
