"""One writer at a time; a dead one is replaced; a replaced one cannot write."""

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sweeps.store.lease import TTL_SECONDS, Lease, LeaseHeld, LeaseLost, read_holder, take_over


def test_a_second_holder_is_told_who_the_first_is(tmp_path: Path) -> None:
    Lease(tmp_path)
    with pytest.raises(LeaseHeld, match=str(os.getpid())) as held:
        Lease(tmp_path)
    # Nobody takes over from a process that is seen to live.
    assert held.value.to_text("--take-over") == str(held.value)


def test_a_released_lease_is_taken_with_a_higher_token(tmp_path: Path) -> None:
    first = Lease(tmp_path)
    first.release()
    assert Lease(tmp_path).token == first.token + 1


def test_a_killed_holder_on_this_host_is_replaced_at_once(tmp_path: Path) -> None:
    code = "import os, sys, pathlib, sweeps.store.lease as s; s.Lease(pathlib.Path(sys.argv[1])); os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    dead = read_holder(tmp_path)
    assert dead is not None
    assert not dead.is_alive
    assert Lease(tmp_path).token == 2


def pretend_other_host(lease: Lease, age: float) -> None:
    lease.path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started_at": 0.0}))
    os.utime(lease.path, (time.time() - age, time.time() - age))


def test_a_holder_elsewhere_is_believed_until_it_stops_renewing(tmp_path: Path) -> None:
    lease = Lease(tmp_path)
    pretend_other_host(lease, TTL_SECONDS / 2)
    with pytest.raises(LeaseHeld, match="elsewhere"):
        Lease(tmp_path)
    pretend_other_host(lease, 2 * TTL_SECONDS)
    assert Lease(tmp_path).token == 2


def test_a_person_may_declare_a_holder_elsewhere_dead(tmp_path: Path) -> None:
    lease = Lease(tmp_path)
    with pytest.raises(LeaseHeld, match=f"kill {os.getpid()}"):
        take_over(tmp_path)
    pretend_other_host(lease, 30)
    with pytest.raises(LeaseHeld, match="last heard of 30 s ago; if it is dead, it can be replaced in 60 s") as held:
        Lease(tmp_path)
    assert held.value.to_text("--take-over").endswith("if you know it to be dead, --take-over replaces it now")
    take_over(tmp_path)
    new = Lease(tmp_path)
    with pytest.raises(LeaseLost):
        lease.renew()
    new.renew()


def test_a_holder_that_was_replaced_learns_it_before_it_writes(tmp_path: Path) -> None:
    old = Lease(tmp_path)
    pretend_other_host(old, 2 * TTL_SECONDS)
    new = Lease(tmp_path)
    with pytest.raises(LeaseLost):
        old.renew()
    new.renew()


def test_a_replaced_holders_late_release_harms_no_new_one(tmp_path: Path) -> None:
    old = Lease(tmp_path)
    pretend_other_host(old, 2 * TTL_SECONDS)
    new = Lease(tmp_path)
    old.release()
    new.check()
    holder = read_holder(tmp_path)
    assert holder is not None
    assert holder.is_alive


def test_of_many_at_once_one_gets_it(tmp_path: Path) -> None:
    def attempt(_: int) -> bool:
        try:
            Lease(tmp_path)
        except LeaseHeld:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(attempt, range(32))) == 1


def see_holder(folder: Path) -> None:
    os.setgid(65534)
    os.setuid(65534)
    holder = read_holder(folder)
    os._exit(0 if holder is not None and holder.is_alive else 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_person_may_see_who_controls_a_sweep() -> None:
    # pytest's own folders are closed to others.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        Lease(Path(folder))
        reader = multiprocessing.get_context("fork").Process(target=see_holder, args=(Path(folder),))
        reader.start()
        reader.join()
        assert reader.exitcode == 0
