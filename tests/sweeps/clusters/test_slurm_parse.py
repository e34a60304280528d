"""What SLURM's commands print, read: lines as Slurm 22.05 wrote them."""

from datetime import datetime

import pytest

from sweeps.clusters.slurm.parse import (
    classify_refusal,
    ends_waited_for,
    expand_node_list,
    gpus_in,
    known_state,
    parse_sacct,
    parse_squeue,
    submitted_number,
)
from sweeps.engine.cluster import RefusalKind
from sweeps.engine.minutes import parse_minutes

RUNNING = (
    "17|0|RUNNING|2|192|2|cpu=192,mem=192G,node=2,billing=192,gres/gpu=16|gres:gpu:h100:8|N/A|N/A|gpu|lab|normal"
    "|1-00:00:00|2026-03-01T09:59:00|2026-03-01T10:00:00|2026-03-02T10:00:00|node[01-02]|None|(null)|study-3fa2c1-000004"
    "|grant 17|\n"
)
WAITING = (
    "18_3|0|PENDING|3|288|3|cpu=288,mem=288G,node=3,billing=288|gres:gpu:8|N/A|N/A|gpu,whole|lab|capped"
    "|30:00|2026-03-01T09:00:00|N/A|N/A||ReqNodeNotAvail, UnavailableNodes:node[03-04]"
    "|afterany:17(unfulfilled),afterany:16(unfulfilled)|study|with|bars|\n"
)


def test_a_line_of_squeue() -> None:
    running, waiting = parse_squeue(RUNNING + WAITING)
    assert (running.job_id, running.num_nodes, running.num_cpus, running.num_gpus) == ("17", 2, 192, 16)
    assert running.wall_minutes == 1440
    assert running.nodes == ("node01", "node02")
    assert not running.is_finished
    assert (waiting.job_id, waiting.started_at, waiting.nodes) == ("18_3", None, ())
    assert (running.after, waiting.after) == (frozenset(), {"16", "17"})
    assert waiting.reason == "ReqNodeNotAvail, UnavailableNodes:node[03-04]"
    assert (running.name, running.comment, running.uid) == ("study-3fa2c1-000004", "grant 17", 0)
    assert (waiting.name, waiting.comment) == ("study", "with|bars")
    assert running.submitted_at == datetime(2026, 3, 1, 9, 59).timestamp()


@pytest.mark.parametrize(
    ("printed", "jobs"),
    [
        ("afterok:17(unfulfilled)", {"17"}),
        ("afternotok:17(unfulfilled),afterany:18(failed)", {"17"}),
        # Either end is enough; a start; nothing that can be counted; a task of an array.
        ("afterany:17(unfulfilled)?afterany:18(unfulfilled)", set()),
        ("after:17+5(unfulfilled)", set()),
        ("singleton(unfulfilled)", set()),
        ("afterany:17_3(unfulfilled)", set()),
    ],
)
def test_only_ends_that_must_come_are_waited_for(printed: str, jobs: set[str]) -> None:
    assert ends_waited_for(printed) == jobs


@pytest.mark.parametrize(
    ("tres", "per_node", "per_job", "per_task", "gpus"),
    [
        ("cpu=2,node=2,gres/gpu=6", "N/A", "N/A", "N/A", 6),
        # A site that does not track GPUs.
        ("cpu=2,node=2", "gres:gpu:3", "N/A", "N/A", 6),
        ("cpu=2,node=2", "N/A", "gres:gpu:h100:5", "N/A", 5),
        ("cpu=2,node=2", "N/A", "N/A", "gres/gpu:2", 8),
    ],
)
def test_gpus_asked_for_in_any_way_are_counted(
    tres: str, per_node: str, per_job: str, per_task: str, gpus: int
) -> None:
    asked = f"{tres}|{per_node}|{per_job}|{per_task}"
    line = f"5|0|PENDING|2|2|4|{asked}|gpu|lab|normal|30:00|N/A|N/A|N/A||Priority|(null)|name|(null)|"
    (job,) = parse_squeue(line)
    assert (job.num_gpus, job.comment) == (gpus, "")


@pytest.mark.parametrize("odd", ["\n", "\x0b", "\u2028", "\n\n12", "|", "\ufffd", "\n\x00\x1b[2J", "\n" * 30])
def test_names_and_comments_of_others_may_hold_anything(odd: str) -> None:
    name = WAITING.replace("study", f"st{odd}udy")
    comment = WAITING.replace("bars", f"ba{odd}rs")
    jobs = parse_squeue(name + comment + RUNNING + WAITING.replace("PENDING", "ON_MARS"))
    assert [job.job_id for job in jobs] == ["18_3", "18_3", "17", "18_3"]
    assert jobs[2] == parse_squeue(RUNNING)[0]
    assert [job.num_nodes for job in jobs] == [3, 3, 2, 3]
    assert not jobs[3].is_finished


def test_text_without_a_row_is_an_error_and_not_an_empty_queue() -> None:
    with pytest.raises(ValueError, match="squeue printed 'slurm_load_jobs error'"):
        parse_squeue("slurm_load_jobs error")
    with pytest.raises(ValueError, match="sacct printed"):
        parse_sacct("SLURM accounting storage is disabled")
    assert parse_squeue("\n") == []


def test_rows_whose_numbers_are_none_are_passed_over() -> None:
    good = "8|0|FAILED|65:0|1|x|x|x|node01|s-000002|"
    assert [job.name for job in parse_sacct(f"7|0|FAILED|x:y|1|x|x|x|node01|s|\n{good}\n9|root|FAILED\n")] == [
        "s-000002"
    ]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("17\n", "17"),
        ("17;cluster\n", "17"),
        ("*** Maintenance on 3 May ***\n17\n", "17"),
        ("17\nYou have used 80 of 100 hours\n", "17"),
        ("Welcome to node 12\n 5 jobs before you\n17;gpu\r\n", "17"),
        ("Submitted batch job\n", None),
        ("", None),
        ("16\n17\n", None),
    ],
)
def test_a_banner_of_sbatch_is_no_job_number(text: str, number: str | None) -> None:
    assert submitted_number(text) == number


def test_lines_of_sacct() -> None:
    text = (
        "7|0|CANCELLED by 1000|0:0|1|2026-03-01T09:00:00|2026-03-01T10:00:00|2026-03-01T10:01:00|node01|s-000001|\n"
        "8|0|FAILED|65:0|1|x|x|x|node01|s-000002|\n9|0|RUNNING|0:0|1|x|x|Unknown|node01|s-000003|\n"
        "10|0|FAILED|0:53|1|x|x|x|None assigned|s-000004|\n"
    )
    cancelled, failed, running, unwritable = parse_sacct(text)
    assert cancelled.is_finished
    assert failed.exit_code == 65
    assert not running.is_finished
    assert (unwritable.exit_code, unwritable.signal, unwritable.nodes) == (0, 53, ())


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("COMPLETED", "COMPLETED"),
        ("COMPLETI", "COMPLETING"),
        ("CANCELLED by 0", "CANCELLED"),
        ("CANCELLED+", "CANCELLED"),
        ("OUT_OF_ME+", "OUT_OF_MEMORY"),
        ("COMP", None),
        ("LAUNCHING_MOON_ROCKET", None),
        ("", None),
    ],
)
def test_states_by_prefix_and_unknown_words_are_unknown(word: str, state: str | None) -> None:
    assert known_state(word.rstrip("+")) == state


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("2-03:04:00", 3064),
        ("10:00", 10),
        ("01:00:00", 60),
        ("90", 90),
        ("UNLIMITED", None),
        ("", None),
        ("1-12", 2160),
    ],
)
def test_durations(text: str, minutes: float | None) -> None:
    assert parse_minutes(text) == minutes


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("node[01-03,07],login", ("node01", "node02", "node03", "node07", "login")),
        ("r[1-2]c[1-2]", ("r1c1", "r1c2", "r2c1", "r2c2")),
        ("gpu-a[098-101]x", ("gpu-a098x", "gpu-a099x", "gpu-a100x", "gpu-a101x")),
        ("None assigned", ()),
        ("", ()),
    ],
)
def test_node_lists(text: str, names: tuple[str, ...]) -> None:
    assert expand_node_list(text) == names


@pytest.mark.parametrize(
    ("text", "gpus"),
    [
        ("gres:gpu:h100:8", 8),
        ("gres:gpu:4", 4),
        ("gpu:8(S:0-1)", 8),
        ("gres:gpu", 1),
        ("gres:gpu:a100:2,gres:gpu:h100:4", 6),
        ("gres/gpu=8", 8),
        ("gres/gpu:h100=8", 8),
        ("cpu=4,mem=4G,node=1,billing=4,gres/gpu=6,gres/gpu:h100=6", 6),
        ("N/A", 0),
        ("gres:nvme:2", 0),
        ("cpu=4,gres/nvme=2", 0),
    ],
)
def test_gpus(text: str, gpus: int) -> None:
    assert gpus_in(text) == gpus


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job violates "
         "accounting/QOS policy (job submit limit, user's size and/or time limits)", RefusalKind.DEFER),
        ("sbatch: error: AssocGrpSubmitJobsLimit", RefusalKind.DEFER),
        ("sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying", RefusalKind.DEFER),
        ("sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
         RefusalKind.DEFER),
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", RefusalKind.MAY_EXIST),
        ("sbatch: error: QOSMaxWallDurationPerJobLimit\nsbatch: error: Batch job submission failed: Job violates "
         "accounting/QOS policy", RefusalKind.FATAL),
        ("sbatch: error: Batch job submission failed: Invalid qos specification", RefusalKind.FATAL),
        ("sbatch: error: something never seen", RefusalKind.FATAL),
    ],
)  # fmt: skip
def test_what_a_refusal_means(words: str, kind: RefusalKind) -> None:
    assert classify_refusal(words) is kind
