"""Work in a second process gives what it gives here, errors among it."""

import os
import subprocess
import sys

import pytest

from analysis.beside import beside

_TWICE = """
import os
from analysis.beside import beside
found = [beside(lambda: (os.getpid(), list(range(100_000)))) for _ in range(2)]
results = [wait() for wait in found]
assert all(numbers == list(range(100_000)) for _, numbers in results)
print(len({os.getpid(), *(process for process, _ in results)}))
"""


def test_work_beside_gives_its_result_from_another_process() -> None:
    """In a Python of its own: where other threads run, as they may in a test's process, the work is done here."""
    done = subprocess.run([sys.executable, "-c", _TWICE], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["3" if len(os.sched_getaffinity(0)) > 1 else "1"], done.stderr


def test_an_error_beside_is_raised_here(capfd: pytest.CaptureFixture[str]) -> None:
    wait = beside(lambda: {}["nothing"])
    with pytest.raises(KeyError):
        wait()


def test_work_without_a_result_is_done_here() -> None:
    here = os.getpid()
    assert beside(lambda: 1 if os.getpid() == here else os._exit(3))() == 1


def test_an_error_in_the_other_process_is_not_shown_twice() -> None:
    failing = "from analysis.beside import beside\nwait = beside(lambda: {}['nothing'])\nwait()\n"
    done = subprocess.run([sys.executable, "-c", failing], capture_output=True, text=True, check=False)
    assert done.stderr.count("Traceback") == 1
