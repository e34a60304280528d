"""A larger text that needs no download of its own: the `.py` files of pinned packages, as their wheels hold them.

The extra `study` installs them. Every file is one document, and of equal files only one: the same text on every machine
that has these versions, wherever they lie. Standard library only.
"""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path

from muloco_runner.config import ConfigError

PACKAGES = {
    "astroid": "4.3.4",
    "django": "5.2.19",
    "docutils": "0.23",
    "faker": "40.63.0",
    "networkx": "3.6.1",
    "nltk": "3.10.4",
    "plotly": "7.1.0",
    "pygments": "2.21.0",
    "scapy": "2.8.0",
    "sympy": "1.14.0",
    "twisted": "26.10.0",
}
"""Pure Python, about 100 MB of source together. Other versions are another text: whoever changes one says so."""


def source_files() -> list[tuple[str, Path]]:
    """Name and path of each `.py` file, in the order of the names. A package that is missing, or of another version,
    raises `ConfigError`."""
    found, wrong = [], []
    for package, version in PACKAGES.items():
        try:
            distribution = metadata.distribution(package)
        except metadata.PackageNotFoundError:
            wrong.append(f"{package} {version} is missing")
            continue
        if distribution.version != version:
            wrong.append(f"{package} is {distribution.version} instead of {version}")
        for file in distribution.files or ():
            # What lies above are commands, which installers write.
            if file.suffix == ".py" and ".." not in file.parts:
                found.append((f"{package}/{file.as_posix()}", Path(str(distribution.locate_file(file)))))
    if wrong:
        raise ConfigError(
            f"data=python_packages reads {len(PACKAGES)} packages, each of one version: {', '.join(wrong)}: "
            "pip install 'muloco-sweeps[study]'"
        )
    return sorted(found)


def read_documents() -> list[tuple[str, bytes]]:
    """Hash and content of each file that has any, the first of equal ones, in the order of their names."""
    documents: dict[str, bytes] = {}
    for name, path in source_files():
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise ConfigError(
                f"data=python_packages: {name} is missing: pip install --force-reinstall 'muloco-sweeps[study]'"
            ) from None
        if content:
            documents.setdefault(hashlib.sha256(content).hexdigest(), content)
    return list(documents.items())
