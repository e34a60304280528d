"""Why an attempt failed, in its own words, and the file that exists."""

from pathlib import Path

from muloco_runner.record import RunFolder, RunStatus
from sweeps.engine.policy import RULES, Cause
from sweeps.engine.run_states import AttemptState, RunState
from sweeps.engine.work import Work
from sweeps.hydra_apps.job_adapter import HYDRA_JOB
from sweeps.node.last_words import last_words, why_not_done
from sweeps.progress_lines import held_line


def run_in(folder: Path) -> RunState:
    run = RunState(Work("r", str(folder / "r"), "sample_work:count", adapter=HYDRA_JOB))
    run.attempts.append(AttemptState(1, "tag-1", "here", 0, 0.0))
    return run


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_nothing_is_said_of_what_left_nothing(tmp_path: Path) -> None:
    assert last_words(run_in(tmp_path), tmp_path) == ""


def test_where_python_never_started_the_jobs_log_speaks(tmp_path: Path) -> None:
    log = write(tmp_path / "logs" / "tag-1.log", "bash: line 3: module: command not found\n\n")
    assert last_words(run_in(tmp_path), tmp_path) == f"bash: line 3: module: command not found; see {log}"
    write(tmp_path / "r" / "attempts" / "1" / "stderr.log", "")
    assert str(log) in last_words(run_in(tmp_path), tmp_path)


def test_an_exceptions_own_line_is_said(tmp_path: Path) -> None:
    text = 'Traceback (most recent call last):\n  File "a.py"\nValueError: no data\nThe job\'s output: x/stderr.log\n'
    log = write(tmp_path / "r" / "attempts" / "1" / "stderr.log", text)
    assert last_words(run_in(tmp_path), tmp_path) == f"ValueError: no data; see {log}"


def test_what_the_attempt_reported_comes_first(tmp_path: Path) -> None:
    write(tmp_path / "r" / "attempts" / "1" / "stderr.log", "a warning\n")
    RunFolder(tmp_path / "r").write_status(RunStatus("r", "failed", attempt=1, exit_cause="OSError: gone"))
    assert last_words(run_in(tmp_path), tmp_path).startswith("OSError: gone; see ")
    # Of an earlier attempt it is no news.
    RunFolder(tmp_path / "r").write_status(RunStatus("r", "failed", attempt=0, exit_cause="OSError: gone"))
    assert last_words(run_in(tmp_path), tmp_path).startswith("a warning; see ")


def test_a_refusal_is_not_explained_by_an_older_attempt(tmp_path: Path) -> None:
    write(tmp_path / "r" / "attempts" / "1" / "stderr.log", "ValueError: no data\n")
    run = run_in(tmp_path)
    run.attempts[-1].cause = Cause.CRASH
    run.held = "the scheduler refuses it: Requested reservation is invalid"
    assert why_not_done(run, tmp_path).startswith(f"{run.held}; its last attempt: ValueError: no data; see ")
    assert held_line(run, run.held, tmp_path) == f"r held: {why_not_done(run, tmp_path)}"
    run.held = f"crash: {RULES[Cause.CRASH].advice}"
    assert why_not_done(run, tmp_path).startswith("ValueError: no data; see ")
    run.held, run.attempts = "the scheduler refuses it: no such partition", []
    assert why_not_done(run, tmp_path) == run.held


def test_how_an_attempt_ended_is_said_where_it_could_not_speak(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    run.attempts[-1].detail = "killed by SIGSEGV"
    assert last_words(run, tmp_path) == "killed by SIGSEGV"
    log = write(tmp_path / "logs" / "tag-1.log", "loading\n")
    assert last_words(run, tmp_path) == f"killed by SIGSEGV: loading; see {log}"


def test_a_failed_setup_is_said_once_with_its_command(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    run.attempts[-1].cause, run.attempts[-1].detail = Cause.SETUP_FAILED, "`false` ended with code 1"
    log = write(tmp_path / "logs" / "tag-1.log", "loading\n")
    assert last_words(run, tmp_path) == f"`false` ended with code 1; see {log}"
