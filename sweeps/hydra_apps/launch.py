"""A multirun of a Hydra application: its jobs as pieces of work, their controller, and what they returned.

A job is named by its overrides and, where folders go by position, its number. So the same command finds finished
jobs, adopts running ones and retries failed ones; nothing that has a result is computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import signal
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, filter_overrides
from hydra.errors import CompactHydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError
from omegaconf.errors import ValidationError as OmegaConfValidationError

from muloco_runner.config import ConfigError
from muloco_runner.record import KILLED_BY_SIGNAL, RecordError, RunFolder
from sweeps.background import how_to_watch, start
from sweeps.clusters import backend_of, make_cluster
from sweeps.clusters.this_machine import usable_gpus
from sweeps.controller import Controller, Tick
from sweeps.engine.cluster import Cluster
from sweeps.engine.cluster_config import ClusterConfig
from sweeps.engine.quota import never_runs
from sweeps.engine.run_states import RunState
from sweeps.engine.sweep_state import SweepState
from sweeps.engine.work import Need, Work
from sweeps.hydra_apps.job_adapter import HYDRA_JOB
from sweeps.hydra_apps.launcher_settings import cluster_of, launcher_of_all, needs_of, without_effect
from sweeps.hydra_apps.program import RESULT, Program, read_return, set_value, write_program
from sweeps.hydra_apps.state_folder import find_state_folder, is_by_position
from sweeps.node.attempt_files import is_finished
from sweeps.node.disk_space import is_disk_full, words_for
from sweeps.node.last_words import why_not_done
from sweeps.notify import notifier_of
from sweeps.progress_lines import Lines, after_interrupt
from sweeps.store.definition import Definition
from sweeps.store.lease import LeaseHeld, take_over

log = logging.getLogger(__name__)


class JobFailed(RuntimeError):
    """A job that left no exception of its own: it was killed, never started, or was held back."""


@contextlib.contextmanager
def hydra_errors() -> Iterator[None]:
    """Show a user's mistake as Hydra shows its own: one line, no traceback."""
    try:
        yield
    except ConfigError as error:
        raise CompactHydraException(str(error)) from None
    except LeaseHeld as error:
        raise CompactHydraException(error.to_text("hydra.launcher.take_over=true")) from None
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise CompactHydraException(
            f"disk full: {words_for(error)}; make room, then the same command continues"
        ) from None
    except (InterpolationResolutionError, OmegaConfValidationError) as error:
        raise CompactHydraException(
            f"{error.full_key}: {str(error).splitlines()[0]}: what it interpolates must have a fitting value in the "
            "application's config, or in the overrides of each job"
        ) from None


class Multirun:
    """One command's jobs, launched in one batch or several."""

    def __init__(self, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config
        with hydra_errors():
            self.state_folder = find_state_folder(config)
        self.uses_earlier_dir = self.state_folder.exists and self.state_folder.sweep_dir != str(
            Path(config.hydra.sweep.dir).absolute()
        )
        if self.uses_earlier_dir:
            # Also for the sweeper, which is given this very config.
            set_value(config.hydra.sweep, "dir", self.state_folder.sweep_dir)
        # Once nothing more can be launched: at the end of this process, unless it is killed.
        self._outcome = _Outcome()
        weakref.finalize(self, _end, self.state_folder.mark_succeeded, self._outcome)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs until each has ended or is held; return what each returned, in their order."""
        with hydra_errors():
            controller, works, on_event = self._prepare(job_overrides, initial_job_idx)
            self._outcome.started += 1
            state = self._run(controller, on_event)
        cluster_dir = self.state_folder.folder.cluster_dir
        returns = [
            _return_of(state.runs[work.name], overrides, cluster_dir)
            for work, overrides in zip(works, job_overrides, strict=True)
        ]
        failed = [work for work, one in zip(works, returns, strict=True) if one.status is not JobStatus.COMPLETED]
        self._outcome.succeeded += not failed
        for work in works:
            # A status that cannot be read must not cost the results.
            with contextlib.suppress(RecordError):
                status = RunFolder(work.folder).read_status()
                if status is not None and status.warning:
                    log.warning(f"\t#{work.arguments['number']}: {status.warning}")
        for work in failed:
            log.error(f"\t#{work.arguments['number']} failed: {_why(state.runs[work.name], cluster_dir)}")
        return returns

    def _run(self, controller: Controller, on_event: str | None) -> SweepState:
        lines = Lines(log.info, self.state_folder.folder.cluster_dir)
        notify = notifier_of(self.state_folder.folder.name, on_event)

        def on_tick(tick: Tick) -> None:
            lines(tick)
            notify(tick)

        try:
            return controller.run(on_tick)
        except KeyboardInterrupt:
            log.info(
                after_interrupt(controller.state, controller.cluster.outlives_controller, self.state_folder.folder)
            )
            # The line says it all: Hydra would add a traceback.
            raise SystemExit(KILLED_BY_SIGNAL + signal.SIGINT) from None

    def detach(self, job_overrides: Sequence[Sequence[str]]) -> None:
        """Start a controller in the background; the same command, later, collects what the jobs returned."""
        with hydra_errors():
            controller, _, on_event = self._prepare(job_overrides, 0)
            controller.lease.release()
            log.info(how_to_watch(self.state_folder.folder, start(self.state_folder.folder, on_event)))

    def _prepare(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> tuple[Controller, list[Work], str | None]:
        """Check all that can be checked before anything is submitted.

        Returns:
            The controller, the jobs, and whom to tell of events (`Notifier`).
        """
        launchers = self._launchers(job_overrides)
        needs = needs_of(launchers)
        works = self._works(job_overrides, initial_job_idx, needs)
        cluster = cluster_of(launcher_of_all(launchers), needs)
        folder = self.state_folder.folder
        notifier_of(folder.name, cluster.on_event)  # raises for a mistake in the target
        definition = Definition(folder.name, cluster.name, cluster.to_dict(), [*self._finished(works), *works])
        if launchers[0]["take_over"]:
            take_over(folder.lease_dir)
        controller = Controller(folder, definition, make_cluster)
        try:
            groups = list(_by_settings(launchers, works))
            for launcher, alike in groups:
                config = cluster if len(groups) == 1 else cluster_of(launcher, needs)
                own = controller.cluster if len(groups) == 1 else make_cluster(config, folder.cluster_dir)
                own.check()
                _check_can_ever_run(controller, own, config, alike)
            Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
            self.state_folder.write()
            write_program(self.state_folder.program_file, self._program())
            folder.write_definition(definition)
            held = [work.name for work in works if controller.state.runs[work.name].held is not None]
            if held:
                # Launching again retries held jobs.
                folder.send("released", runs=held)
        except BaseException:
            controller.lease.release()
            raise
        if cluster.kind == "local" and usable_gpus() and not any(need.gpus_per_node for need in needs):
            log.warning(
                "No job asks for a GPU, so none sees one: hydra.launcher.resources.gpus_per_node=1 gives each its own"
            )
        for setting in without_effect(launchers[0]):
            log.warning(f"{setting} has no effect on {backend_of(cluster.kind, 'kind').title}")
        self._announce(cluster, works, controller.state)
        return controller, works, cluster.on_event

    def _works(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int, needs: Sequence[Need]) -> list[Work]:
        by_position = is_by_position(self.config)
        works: dict[str, Work] = {}
        for number, overrides in enumerate(job_overrides, start=initial_job_idx):
            position = number if by_position and not any(_sets(o, "hydra.sweep.subdir") for o in overrides) else None
            name, same = _name(overrides, position, 0), 0
            while name in works:
                same += 1
                name = _name(overrides, position, same)
            works[name] = Work(
                name=name,
                folder=str(self.state_folder.folder.path.absolute() / "runs" / name),
                entry="sweeps.hydra_apps.program:run",
                arguments={
                    "program": str(self.state_folder.program_file.absolute()),
                    "overrides": list(overrides),
                    "number": number,
                    "job": name,
                },
                need=needs[number - initial_job_idx],
                labels=dict(_label(override) for override in filter_overrides(overrides)),
                result=RESULT,
                source=str(Path(sys.argv[0]).absolute().parent),
                adapter=HYDRA_JOB,
            )
        return list(works.values())

    def _launchers(self, job_overrides: Sequence[Sequence[str]]) -> list[Mapping[str, Any]]:
        """Return each job's own `hydra.launcher`.

        Composed for each job only where its config can make a difference: composing takes tens of milliseconds.
        """
        unresolved = OmegaConf.to_yaml(self.config.hydra.launcher, resolve=False)
        if "${" not in unresolved and not any(
            _sets(o, "hydra.launcher") for overrides in job_overrides for o in overrides
        ):
            return [_plain(self.config.hydra.launcher)] * len(job_overrides)
        load = self.hydra_context.config_loader.load_sweep_config
        return [_plain(load(self.config, list(overrides)).hydra.launcher) for overrides in job_overrides]

    def _finished(self, works: Sequence[Work]) -> list[Work]:
        """Return finished jobs of earlier batches or commands, so that `muloco-sweep status` shows them too."""
        try:
            before = self.state_folder.folder.read_definition().works
        except ConfigError:
            return []
        names = {work.name for work in works}
        return [work for work in before if work.name not in names and is_finished(work)]

    def _program(self) -> Program:
        return Program(
            self.hydra_context,
            self.task_function,
            self.config,
            Singleton.get_state(),
            self.state_folder.sweep_dir if self.uses_earlier_dir else None,
        )

    def _announce(self, cluster: ClusterConfig, works: Sequence[Work], state: SweepState) -> None:
        done = sum(is_finished(work) for work in works)
        where = backend_of(cluster.kind, "kind").title
        log.info(f"Launching {len(works)} jobs on {where}; state in {self.state_folder.folder.path}")
        if self.state_folder.exists and (done or state.jobs):
            log.info(
                f"\tcontinues a multirun that was started in {self.state_folder.sweep_dir}: "
                f"{done} of these jobs are done, {len(state.jobs)} in flight; hydra.launcher.name=OTHER starts another"
            )
        for work in works:
            log.info(f"\t#{work.arguments['number']} : {' '.join(filter_overrides(work.arguments['overrides']))}")


@dataclass
class _Outcome:
    """Number of batches so far."""

    started: int = 0
    succeeded: int = 0


def _end(mark_succeeded: Callable[[], None], outcome: _Outcome) -> None:
    if outcome.started and outcome.started == outcome.succeeded:
        mark_succeeded()


def _check_can_ever_run(controller: Controller, cluster: Cluster, config: ClusterConfig, works: Sequence[Work]) -> None:
    found = never_runs(works, config, cluster.limits(controller.folder.owns), controller.state)
    if found is not None:
        work, why = found
        overrides = " ".join(filter_overrides(work.arguments["overrides"]))
        raise ConfigError(f"job #{work.arguments['number']} ({overrides}) can never run: {why}")


def _by_settings(
    launchers: Sequence[Mapping[str, Any]], works: Sequence[Work]
) -> Iterator[tuple[Mapping[str, Any], list[Work]]]:
    """Yield each launcher that differs in more than what jobs ask for, with its jobs."""
    found: list[tuple[Mapping[str, Any], list[Work]]] = []
    for one, work in zip(launchers, works, strict=True):
        alike = [own for launcher, own in found if {**one, "resources": None} == {**launcher, "resources": None}]
        if alike:
            alike[0].append(work)
        else:
            found.append((one, [work]))
    yield from found


def _return_of(run: RunState, overrides: Sequence[str], cluster_dir: Path) -> JobReturn:
    """Return what the job returned, or a failure that says why it returned nothing."""
    folder = Path(run.work.folder)
    if run.done:
        return _result_in(folder, overrides)
    is_news = run.held is None or run.is_held_by_attempt
    if run.attempts and is_news:
        # One of a class that only the job can import says why in the attempt's output.
        with contextlib.suppress(Exception):
            left = read_return(folder / "attempts" / str(run.attempts[-1].number))
            if left is not None:
                return left
    failed = JobReturn(overrides=filter_overrides(overrides), status=JobStatus.FAILED)
    failed.return_value = JobFailed(_why(run, cluster_dir))
    return failed


def _result_in(folder: Path, overrides: Sequence[str]) -> JobReturn:
    """Return a finished job's result: None, with a warning, where its class cannot be imported here."""
    try:
        found = read_return(folder)
    except Exception as error:
        log.warning(f"\tthe result in {folder} cannot be read here ({type(error).__name__}: {error}): None is given")
        return JobReturn(overrides=filter_overrides(overrides), status=JobStatus.COMPLETED)
    assert found is not None, f"{folder} has lost its result"
    return found


def _why(run: RunState, cluster_dir: Path) -> str:
    return why_not_done(run, cluster_dir) or "it never started"


def _name(overrides: Sequence[str], position: int | None, same: int) -> str:
    """Return 12 hex digits. `same` counts earlier jobs of the batch with the same overrides."""
    content = json.dumps([sorted(overrides), position, same])
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _label(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key.lstrip("+~"), value


def _sets(override: str, key: str) -> bool:
    return override.lstrip("+").startswith(key)


def _plain(node: DictConfig) -> Mapping[str, Any]:
    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items() if key != "_target_"}
