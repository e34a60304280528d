"""What the Hydra plugins cost every start of every Hydra application: `python app.py --help` with them and without.

Without is the same environment told that there are no plugins (`hydra_plugins` cannot be imported), so that only the
plugins differ. Starts are interleaved; the table gives medians, quartiles, and the difference of each pair.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

from rich.console import Console
from rich.table import Table

APPLICATION = """
import sys
{before}
import hydra

@hydra.main(version_base="1.3", config_path=None)
def main(config): pass

sys.argv = ["app.py", "--help"]
main()
"""
BEFORE = {"without": "sys.modules['hydra_plugins'] = None", "with": ""}


def seconds_of(kind: str) -> float:
    code = APPLICATION.format(before=BEFORE[kind])
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=25, help="starts of each kind (default 25)")
    pairs = parser.parse_args().pairs
    for kind in BEFORE:
        seconds_of(kind)  # files into the cache
    took = [{kind: seconds_of(kind) for kind in BEFORE} for _ in range(pairs)]
    table = Table("plugins", "median ms", "quartiles ms", box=None)
    columns = {kind: [pair[kind] for pair in took] for kind in BEFORE}
    columns["difference"] = [pair["with"] - pair["without"] for pair in took]
    for name, values in columns.items():
        low, middle, high = (1000 * value for value in statistics.quantiles(values, n=4))
        table.add_row(name, f"{middle:.0f}", f"{low:.0f} to {high:.0f}")
    ratio = statistics.median(pair["with"] / pair["without"] for pair in took)
    console = Console()
    console.print(table)
    console.print(f"with over without, median of pairs: {ratio:.3f}")


if __name__ == "__main__":
    main()
