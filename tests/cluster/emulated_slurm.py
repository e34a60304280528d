"""A real SLURM on this machine: munge, MariaDB, slurmdbd, slurmctld and several slurmd of 8 fake GPUs each.

Everything lives in one folder and on free local ports; the system's own SLURM is neither read nor changed, and several
such clusters live side by side. Daemons run in the foreground as children of this process and are told to stop when it
dies, so that none is left behind.
Needs root and Debian's packages slurm-wlm, slurmdbd, munge, mariadb-server and faketime.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import string
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

import psutil
from node_addresses import PortBlock, name_in_hosts

PROGRAMS = (
    "munged",
    "mariadbd",
    "mariadb-install-db",
    "slurmdbd",
    "slurmctld",
    "slurmd",
    "sbatch",
    "sacctmgr",
    "faketime",
)
GPUS_PER_NODE = 8
CPUS_PER_NODE = 96
TEMPLATES = Path(__file__).parent
PATIENCE_SECONDS = 600
"""How long tests wait for an event: far longer than it takes, however busy the machine is."""
ANSWER_SECONDS, SILENCE_SECONDS = 60, 2
"""How long SLURM's commands wait for an answer, and try to reach a slurmctld that a test has stopped."""
OTHER_USER = "nobody"
"""A user of every Debian, whose jobs hold nodes beside ours."""

QOS = """
modify qos normal set Priority=100
add qos low Priority=10 PreemptMode=requeue GraceTime=5
add qos high Priority=1000 Preempt=low
add qos capped Priority=100
add qos brief Priority=100 MaxWall=00:10:00
"""
ACCOUNTS = """
add account lab Cluster=emulated Description=lab Organization=tests QOS=normal,low,high,capped,brief DefaultQOS=normal
add account elsewhere Cluster=emulated Description=elsewhere Organization=tests QOS=normal DefaultQOS=normal
add user root Account=lab Cluster=emulated
add user nobody Account=lab Cluster=emulated
add user nobody Account=elsewhere Cluster=emulated
"""


def why_unavailable() -> str | None:
    """What is missing to start the cluster here, or None."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"{', '.join(missing)} not found: apt-get install slurm-wlm slurmdbd munge mariadb-server faketime"
    if os.geteuid() != 0:
        return "only root can start SLURM's daemons"
    return None


class EmulatedSlurm:
    """The cluster and what a test may do to it.

    Partitions: gpu, debug (one node, 30 minutes), whole (whole nodes only), closed (QOS high only).
    Accounts: lab (root and nobody; every QOS) and elsewhere (nobody alone; normal).
    QOS: normal, low (preempted by high), high, capped (as a test sets it), brief (10 minutes at most).
    """

    def __init__(self, state: Path, num_nodes: int = 8) -> None:
        self.state = state
        self.nodes = [f"node{number:02d}" for number in range(1, num_nodes + 1)]
        self.configuration = state / "etc" / "slurm.conf"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._limits: dict[str, str] = {}
        self._original: str | None = None
        """The configuration, where a test has changed it."""
        self._num_limits = 0
        """How often limits have been set."""
        self.is_used = False
        """Whether a test that may leave it changed has had it."""
        self._ports = PortBlock(3 + num_nodes)
        self._controller_port, self._daemon_port, self._database_port, *node_ports = self._ports.numbers
        self._node_ports = dict(zip(self.nodes, node_ports, strict=True))

    # Life of the whole

    def start(self) -> None:
        """From an empty folder to idle nodes. Sets SLURM_CONF for this process and its children."""
        os.environ["SLURM_CONF"] = str(self.configuration)
        self._write_files()
        name_in_hosts(self.nodes)
        self._start_munge()
        self._start_database()
        self.start_database_daemon()
        self.run("sacctmgr", "-iQ", "add", "cluster", "emulated")
        self.start_controller()
        for node in self.nodes:
            self._start_node_daemon(node)
        # Two calls, since sacctmgr reads the list of QOS once. Its exit status says nothing: the result is read back.
        for lines in (QOS, ACCOUNTS):
            subprocess.run(["sacctmgr", "-iQ"], input=lines, text=True, check=False, stdout=subprocess.DEVNULL)
        associations = self.run("sacctmgr", "-nP", "show", "assoc", "format=account,user")
        assert {"lab|root", "lab|nobody", "elsewhere|nobody"} <= set(associations.split()), associations
        self.wait_until_idle()

    def stop(self) -> None:
        """Ends all jobs and daemons; the folder with its logs stays."""
        with contextlib.suppress(subprocess.SubprocessError, TimeoutError):
            self._empty_queue()
        for name in ("slurmctld", *self.nodes, "slurmdbd", "mariadbd", "munged"):
            self._stop(name)
        for process in self._processes_of_jobs():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        name_in_hosts([])
        self._ports.release()
        os.environ.pop("SLURM_CONF", None)

    # What a test may do

    def run(self, *command: str, timeout: float = PATIENCE_SECONDS) -> str:
        """Standard output of a SLURM command; fails with its words."""
        # Other tests leave jobs whose names and comments are not of this encoding.
        done = subprocess.run(
            command, capture_output=True, text=True, errors="backslashreplace", timeout=timeout, check=False
        )
        if done.returncode != 0:
            raise subprocess.SubprocessError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def hold_nodes(self, num_nodes: int, user: str = "root", seconds: int = 3600, **options: str) -> str:
        """Job id of a plain job of somebody's that keeps whole nodes busy."""
        flags = [f"--{name}={value}" for name, value in options.items()]
        command = ["sbatch", "--parsable", f"--uid={user}", f"--nodes={num_nodes}", "--exclusive"]
        return self.run(
            *command, "--account=lab", "--chdir=/tmp", *flags, "--output=/dev/null", f"--wrap=exec sleep {seconds}"
        ).strip()

    def occupy(self, num_nodes: int, **options: str) -> str:
        """The same with another user's job, and no return before it has its nodes."""
        job = self.hold_nodes(num_nodes, OTHER_USER, **options)
        self.wait_for_start(job)
        return job

    def wait_for_start(self, job: str) -> None:
        wait_for(lambda: self.run("squeue", "-h", "-j", job, "-o", "%T").strip() == "RUNNING", f"start of job {job}")

    def accounted_end(self, which: str) -> str:
        """State, exit code and signal of the job that this option of sacct names, once accounting has its end."""
        said: list[str] = []

        def ended() -> bool:
            said[:] = self.run("sacct", "-nPX", which, "-o", "State,ExitCode").split("\n")[:1]
            return bool(said[0]) and not said[0].startswith(("PENDING", "RUNNING", "COMPLETING"))

        wait_for(ended, f"end of the job {which} in accounting")
        return said[0]

    def end_time(self, job: str) -> None:
        """The running job has reached its time limit, which SLURM counts in whole minutes."""

        def is_taken() -> bool:
            # Refused within the second in which the job has started.
            self.run("scontrol", "update", f"JobId={job}", "EndTime=now")
            return True

        wait_for(is_taken, f"end of the time of job {job}")

    def limit(self, **limits: str) -> None:
        """Sets limits of the QOS `capped` (GrpTRES="node=3") until the next test; they bind once this returns."""
        self._num_limits += 1
        # A limit that binds nobody, and that slurmctld, which hears of all from the database, shows.
        mark = f"GrpJobsAccrue={1_000_000 + self._num_limits}"
        words = [f"{key}={value}" for key, value in limits.items()]
        self.run("sacctmgr", "-iQ", "modify", "qos", "capped", "set", *words, mark)
        self._limits |= {key: f"{value.rpartition('=')[0]}=-1".lstrip("=") for key, value in limits.items()}
        wait_for(
            lambda: f"{mark}(" in self.run("scontrol", "show", "assoc_mgr", "qos=capped", "flags=qos"),
            f"limits {' '.join(words)} in slurmctld",
        )

    def configure(self, **settings: str | None) -> None:
        """Sets lines of slurm.conf, or removes those that are None, until the next test; slurmctld starts anew."""
        if self._original is None:
            self._original = self.configuration.read_text()
        lines = self._original.splitlines()
        kept = [line for line in lines if line.partition("=")[0] not in settings]
        kept += [f"{name}={value}" for name, value in settings.items() if value is not None]
        self._restart_with("\n".join(kept) + "\n")

    def _restart_with(self, configuration: str) -> None:
        self.stop_controller()
        self._write_configuration(configuration)
        self.start_controller()

    def _write_configuration(self, text: str) -> None:
        """Whole at every moment: commands read it whenever they start."""
        draft = self.configuration.with_suffix(".draft")
        draft.write_text(text)
        draft.rename(self.configuration)

    def _set_message_timeout(self, seconds: int) -> None:
        lines = self.configuration.read_text().splitlines()
        changed = [f"MessageTimeout={seconds}" if line.startswith("MessageTimeout=") else line for line in lines]
        self._write_configuration("\n".join(changed) + "\n")

    def cancel_everything(self) -> None:
        """All daemons there, no job left in the queue, all nodes idle, no limit set: where every test starts."""
        if self._daemons["slurmdbd"].poll() is not None:
            self.start_database_daemon()
        if self._daemons["slurmctld"].poll() is not None:
            self.start_controller()
        if self._original is not None:
            self._restart_with(self._original)
            self._original = None
        if self._limits:
            unlimited, self._limits = self._limits, {}
            self.limit(**unlimited)
            self._limits = {}
        self._empty_queue()
        for node in self.nodes:
            if self._daemons[node].poll() is not None:
                self.revive_node(node)
        self.wait_until_idle()
        self.is_used = False

    def wait_until_idle(self) -> None:
        def all_idle() -> bool:
            idle = self.run("sinfo", "-hN", "-p", "gpu", "-t", "idle", "-o", "%N %T")
            return sum(line.endswith("idle") for line in idle.splitlines()) == len(self.nodes)

        wait_for(all_idle, "idle nodes")

    def lose_node(self, node: str) -> None:
        """The node's power fails: its daemon, its step daemons and every task on it die at once."""
        self._daemons[node].kill()
        self._daemons[node].wait()
        # A step daemon may start a task while others are being listed, and must not tell of one that is gone.
        while processes := list(self._processes_of_jobs(node)):
            for process in sorted(processes, key=lambda process: process.name() != "slurmstepd"):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    def revive_node(self, node: str) -> None:
        shutil.rmtree(self.state / "spool" / node)
        self._start_node_daemon(node)

    def declare_down(self, node: str) -> None:
        """What SlurmdTimeout would conclude after a while, at once."""
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")

    def declare_up(self, node: str) -> None:
        def is_up() -> bool:
            if "down" not in self.run("sinfo", "-hN", "-p", "gpu", "-n", node, "-o", "%T"):
                return True
            # Refused where it has come back by itself meanwhile.
            self.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
            return False

        wait_for(is_up, f"node {node}")

    def start_controller(self) -> None:
        self._set_message_timeout(ANSWER_SECONDS)
        self._start("slurmctld", "slurmctld", "-D")
        wait_for(lambda: "UP" in self.run("scontrol", "ping"), "slurmctld")

    def stop_controller(self) -> None:
        """By TERM: killed, it would lose its last seconds and might give a job id twice."""
        self._stop("slurmctld", PATIENCE_SECONDS)
        # Commands try to reach it for as long as they would wait for its answer.
        self._set_message_timeout(SILENCE_SECONDS)

    def start_database_daemon(self) -> None:
        self._start("slurmdbd", "slurmdbd", "-D")
        wait_for(lambda: self.run("sacctmgr", "-n", "show", "cluster") is not None, "slurmdbd")

    def stop_database_daemon(self) -> None:
        self._stop("slurmdbd", PATIENCE_SECONDS)

    @contextlib.contextmanager
    def suspended_tasks(self) -> Iterator[None]:
        """All that jobs run stands still meanwhile; signals wait for it."""
        tasks = [process for process in self._processes_of_jobs() if process.name() != "slurmstepd"]
        for task in tasks:
            task.suspend()
        try:
            yield
        finally:
            for task in tasks:
                with contextlib.suppress(psutil.NoSuchProcess):
                    task.resume()

    # Inside

    def _empty_queue(self) -> None:
        for user in ("root", OTHER_USER):
            self.run("scancel", "--full", "--signal=KILL", f"--user={user}")
            self.run("scancel", f"--user={user}")
        wait_for(lambda: not self.run("squeue", "-h"), "an empty queue")

    def _write_files(self) -> None:
        for name in ("etc", "run", "log", "slurmctld", "spool", "dev", "database", "tmp"):
            (self.state / name).mkdir(parents=True)
        for number in range(GPUS_PER_NODE):
            # slurmd asks for a character device: a plain file would leave CUDA_VISIBLE_DEVICES unset.
            (self.state / "dev" / f"nvidia{number}").symlink_to("/dev/null")
        host = socket.gethostname().split(".")[0]
        node_lines = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS_PER_NODE} "
            f"SocketsPerBoard=2 CoresPerSocket={CPUS_PER_NODE // 2} ThreadsPerCore=1 RealMemory=1000000 "
            f"Gres=gpu:h100:{GPUS_PER_NODE}"
            for node, port in self._node_ports.items()
        )
        for name in ("slurm.conf", "slurmdbd.conf"):
            text = string.Template((TEMPLATES / f"{name}.template").read_text()).substitute(
                host=host,
                state=self.state,
                answer_seconds=ANSWER_SECONDS,
                controller_port=self._controller_port,
                database_daemon_port=self._daemon_port,
                database_port=self._database_port,
                node_lines=node_lines,
                first_node=self.nodes[0],
            )
            (self.state / "etc" / name).write_text(text)
            (self.state / "etc" / name).chmod(0o600 if name == "slurmdbd.conf" else 0o644)
        devices = f"{self.state}/dev/nvidia[0-{GPUS_PER_NODE - 1}]"
        (self.state / "etc" / "gres.conf").write_text(f"AutoDetect=off\nName=gpu Type=h100 File={devices}\n")
        key = self.state / "etc" / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o600)

    def _start_munge(self) -> None:
        run, etc = self.state / "run", self.state / "etc"
        options = [f"--key-file={etc}/munge.key", f"--socket={run}/munge.socket", f"--pid-file={run}/munged.pid"]
        files = [f"--log-file={self.state}/log/munge.log", f"--seed-file={run}/munge.seed"]
        self._start("munged", "munged", "--foreground", "--force", *options, *files)
        wait_for(lambda: bool(self.run("munge", "-n", "-S", f"{run}/munge.socket")), "munge")

    def _start_database(self) -> None:
        data, socket_file = self.state / "database", self.state / "run" / "database.sock"
        temporary = self.state / "tmp"
        install = ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}", "--skip-test-db"]
        # Its temporary tables are named by process ids, alike in two containers that share a /tmp.
        self.run(*install, f"--tmpdir={temporary}", "--skip-name-resolve", "--auth-root-authentication-method=normal")
        address = [f"--socket={socket_file}", f"--port={self._database_port}", "--bind-address=127.0.0.1"]
        memory = [
            "--innodb-buffer-pool-size=64M",
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-lock-wait-timeout=900",
        ]
        start = [
            "mariadbd",
            "--no-defaults",
            "--user=root",
            f"--datadir={data}",
            f"--tmpdir={temporary}",
            "--skip-name-resolve",
        ]
        self._start("mariadbd", *start, *address, *memory)
        client = ["mariadb", "--no-defaults", "--user=root", f"--socket={socket_file}", "-e"]
        wait_for(lambda: bool(self.run(*client, "select 1")), "MariaDB")
        user = "slurm@'127.0.0.1'"
        self.run(*client, f"create database slurm_accounting; create user {user} identified by 'slurm'")
        self.run(*client, f"grant all on slurm_accounting.* to {user}")

    def _start_node_daemon(self, node: str) -> None:
        (self.state / "spool" / node).mkdir(parents=True, exist_ok=True)
        self._start(node, "slurmd", "-D", "-N", node)

    def _start(self, name: str, *command: str) -> None:
        with open(self.state / "log" / f"{name}.out", "ab") as output:
            self._daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *command], stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def _stop(self, name: str, seconds: float = 15) -> None:
        daemon = self._daemons.get(name)
        if daemon is None or daemon.poll() is not None:
            return
        daemon.terminate()
        try:
            daemon.wait(seconds)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def _processes_of_jobs(self, node: str = "*") -> Iterator[psutil.Process]:
        """Step daemons (known by the log they hold open) and tasks (by their environment) of this cluster's nodes."""
        log = f"{self.state}/log/slurmd-{node}.log"
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.name() == "slurmstepd":
                    if any(fnmatch(file.path, log) for file in process.open_files()):
                        yield process
                    continue
                environment = process.environ()
                is_ours = environment.get("SLURM_CONF") == str(self.configuration)
                if is_ours and fnmatch(environment.get("SLURMD_NODENAME", ""), node.replace("*", "?*")):
                    yield process


def wait_for(happens: Callable[[], bool], what: str) -> None:
    """Polls until `happens`; a SLURM command that fails counts as not yet. Gives up with what SLURM says meanwhile."""
    end, failure = time.monotonic() + PATIENCE_SECONDS, ""
    while time.monotonic() < end:
        try:
            if happens():
                return
        except subprocess.SubprocessError as error:
            failure = f"\nlast failure: {error}"
        time.sleep(0.1)
    raise TimeoutError(f"no {what} within {PATIENCE_SECONDS} s{failure}\n{queue_and_nodes()}")


def queue_and_nodes() -> str:
    """What SLURM says of its jobs and nodes, for whoever has waited in vain."""
    said = []
    for command in (["squeue", "-o", "%i %j %u %T %M %r %N"], ["sinfo", "-N", "-o", "%N %T %E"]):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
            said.append(f"{command[0]}:\n{done.stdout}{done.stderr}")
    return "\n".join(said)


def main() -> None:
    """By hand: `python tests/cluster/emulated_slurm.py FOLDER`, until Ctrl-C."""
    cluster = EmulatedSlurm(Path(sys.argv[1]).resolve())
    try:
        cluster.start()
        print(f"export SLURM_CONF={cluster.configuration}", flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
    finally:
        cluster.stop()


if __name__ == "__main__":
    main()
