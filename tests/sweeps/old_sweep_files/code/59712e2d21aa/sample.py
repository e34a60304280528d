"""The work of the old sweep, which says that old code has done it."""

import time
from pathlib import Path


def count(folder: str, attempt: int, memory_halvings: int, seconds: float = 0.0) -> int:
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    with open(place / "old", "a") as file:
        file.write(f"{attempt} {memory_halvings}\n")
    time.sleep(seconds)
    (place / "result.json").write_text("{}")
    return 0
