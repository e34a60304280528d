"""Someone is told once of each held run and of the end."""

import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from muloco_runner.config import ConfigError
from sweeps.controller import Tick
from sweeps.engine.decide import Plan
from sweeps.engine.quota import Verdict, VerdictKind
from sweeps.engine.sweep_state import SweepState
from sweeps.engine.work import Work
from sweeps.notify import Notifier


def tick(**held: str | None) -> Tick:
    state = SweepState.of([Work(name, name, "m:f") for name in held])
    for name, why in held.items():
        if why is not None:
            state.apply({"event": "held", "runs": [name], "why": why})
    return Tick(state, Plan(), complete=True, queue_read=True)


HISTORY = [tick(a="old", b=None, c=None), tick(a="old", b="broke", c=None), tick(a="old", b="broke", c=None)]
END = tick(a="old", b="broke", c="too")
EXPECTED = [
    {"sweep": "s", "event": "held", "runs": {"b": "broke"}},
    {"sweep": "s", "event": "held", "runs": {"c": "too"}},
    {"sweep": "s", "event": "ended", "counts": {"held": 3}},
]


def test_a_command_gets_each_event_once(tmp_path: Path) -> None:
    script = tmp_path / "tell me.py"
    script.write_text("import sys; open(sys.argv[1], 'a').write(sys.stdin.read() + '\\n')")
    told = tmp_path / "told; rm -rf x"  # words of the command, never of a shell
    notify = Notifier("s", f"{sys.executable} '{script}' '{told}'")
    for one in [*HISTORY, END, END]:
        notify(one)
    assert [json.loads(line) for line in told.read_text().splitlines()] == EXPECTED


def test_what_can_never_run_is_told_once(tmp_path: Path) -> None:
    told = tmp_path / "told"
    one = tick(a=None)
    (shape,) = one.state.waiting
    never = replace(one, plan=Plan(verdicts={shape: Verdict(VerdictKind.NEVER, "too long")}))
    notify = Notifier("s", f"tee -a {told}")
    for each in (one, never, never):
        notify(each)
    assert json.loads(told.read_text()) == {"sweep": "s", "event": "never", "why": ["too long"]}


def test_a_slow_node_is_told_once_and_not_by_the_next_launch(tmp_path: Path) -> None:
    told, one = tmp_path / "told", tick(a=None)
    notify = Notifier("s", f"tee -a {told}")
    notify(one)
    one.state.apply({"event": "slow_node", "node": "n1", "run": "a", "factor": 2.5, "time": 7.0})
    for told_by in (notify, notify, Notifier("s", f"tee -a {told}")):
        told_by(one)
    slow = {"run": "a", "factor": 2.5, "at": 7.0}
    assert json.loads(told.read_text()) == {"sweep": "s", "event": "slow_node", "nodes": {"n1": slow}}


@pytest.fixture
def inbox() -> Iterator[tuple[str, list[object]]]:
    received: list[object] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", received
    server.shutdown()
    server.server_close()


def test_an_address_gets_each_event_once(inbox: tuple[str, list[object]]) -> None:
    address, received = inbox
    notify = Notifier("s", address)
    for one in [*HISTORY, END]:
        notify(one)
    assert received == EXPECTED


def test_a_message_that_cannot_be_sent_stops_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for target in ("/no/such/command", "false SECRET", "http://127.0.0.1:1/", "http://127.0.0.1:one/"):
        notify = Notifier("s", target)
        for one in [*HISTORY, END]:
            notify(one)
        said = capsys.readouterr().err
        assert said.startswith("on-event: ")
        assert "SECRET" not in said
    for mistake in (" ", "tell 'me"):
        with pytest.raises(ConfigError):
            Notifier("s", mistake)


@pytest.mark.parametrize("target", ["ftp://host/x", "http://", "https:///path", "s3://bucket token=1"])
def test_an_address_that_nothing_can_be_sent_to_is_refused(target: str) -> None:
    with pytest.raises(ConfigError, match=r"on_event of the cluster.*give http\(s\)://HOST"):
        Notifier("s", target)
