"""Where the YAML values lie. Standard library only, so that `--help` can list them at once."""

from __future__ import annotations

from pathlib import Path


def config_dir() -> Path:
    """conf/: beside the packages in a checkout, inside this one when installed from a wheel."""
    here = Path(__file__).resolve().parent
    installed = here / "conf"
    return installed if installed.is_dir() else here.parent / "conf"
