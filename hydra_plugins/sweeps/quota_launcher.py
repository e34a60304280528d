"""`hydra/launcher=quota`: the jobs of a multirun under quotas, on this machine or under SLURM.

    python app.py --multirun hydra/launcher=quota lr=0.1,0.2
    python app.py --multirun hydra/launcher=quota hydra.launcher.cluster=slurm hydra.launcher.quota.nodes=2 lr=0.1,0.2

The settings are here; what they do is in `sweeps.hydra_apps`.
"""

# Each start of an application copies all settings dozens of times, so what few set goes into `allocations`.
# Annotations are not postponed here: Hydra runs a plugin's module before it is in sys.modules, where a dataclass would
# look its postponed ones up.
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn
    from hydra.types import HydraContext, TaskFunction
    from omegaconf import DictConfig

    from sweeps.hydra_apps.launch import Multirun


@dataclass
class QuotaConf:
    """The user's own limits; null where there is none. The cluster's own limits apply too.

    The engine's class of the same fields is too much to load at every start of every application.
    """

    nodes: int | None = None
    gpus: int | None = None
    jobs: int | None = None
    """Running at once; on this machine null takes what its cores or GPUs allow."""
    submitted_jobs: int | None = None
    """Queued and running."""
    gpu_hours: float | None = None


@dataclass
class ResourcesConf:
    """What one job asks for. May interpolate values of the job's own config, such as ${model.nodes}."""

    nodes: int = 1
    gpus_per_node: int = 0
    cpus_per_node: int = 1
    tasks_per_node: int = 1
    """Processes that run the application together; the first one's return value is the job's."""
    wall_minutes: Any = 60.0
    """Time limit of a job, in minutes or as SLURM writes it ("1-00:00:00"); doubled after a job has reached it."""
    memory_gigabytes: float | None = None
    """Main memory of each node, in GiB; null takes SLURM's default. On this machine nothing limits it."""
    max_memory_gigabytes: float | None = None
    """A job that ran out of memory is tried again with twice as much, up to this; null for no more."""


@dataclass
class QuotaLauncherConf:
    _target_: str = "hydra_plugins.sweeps.quota_launcher.QuotaLauncher"
    cluster: str = "local"
    """local (this machine) or slurm."""
    resources: ResourcesConf = field(default_factory=ResourcesConf)
    quota: QuotaConf = field(default_factory=QuotaConf)
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: Any = None
    """This and what follows are submitit's parameters by their names, for SLURM alone (`SlurmOptions`)."""
    exclude: Any = None
    nodelist: Any = None
    gres: Any = None
    """Generic resources per node; `gpu:h100` gets each job's number of GPUs."""
    mem: Any = None
    mem_gb: Any = None
    """Memory per node, in GiB."""
    mem_per_cpu: Any = None
    mem_per_gpu: Any = None
    exclusive: Any = None
    comment: Any = None
    wckey: Any = None
    mail_type: Any = None
    mail_user: Any = None
    dependency: Any = None
    signal_delay_s: Any = None
    """A job is told this long before its time limit; null takes 120."""
    setup: list[str] = field(default_factory=list)
    """Lines of shell that a SLURM job runs first, such as `module load cuda`; the first that fails ends it."""
    teardown: Any = None
    """Lines of shell that it runs last; they keep its exit code."""
    python: Any = None
    """Shell command that starts Python on the nodes, such as `apptainer exec image.sif python`."""
    srun_args: Any = None
    """Arguments of srun, which starts the work where there are any."""
    use_srun: Any = None
    additional_parameters: Any = None
    """Further options of sbatch, by their long names."""
    sbatch: dict[str, Any] = field(default_factory=dict)
    """The same setting by its earlier name."""
    allocations: dict[str, Any] = field(default_factory=dict)
    """Several ways into the cluster, or one of which there is more to say, by name: quota and SLURM's settings, where
    they are not as above; gpus_per_node and cpus_per_node (what a node has; unsaid, what jobs ask for),
    whole_nodes (a job gets its nodes alone, so those that ask for some of a node's GPUs are packed together; jobs
    without GPUs are not), max_wall_minutes (1440)."""
    successors: bool = True
    """Whether jobs are queued behind those whose nodes they take, so that a node waits for SLURM alone."""
    on_alike_failures: str = "go_on"
    """Once three jobs have crashed with the same message: `hold` the others, or `go_on`."""
    retries: int = 1
    """A job that crashed, or whose `setup` failed, is tried again so many times since its newest checkpoint."""
    max_timeouts: int = 2
    """A job that reaches its time limit so many times without a new checkpoint is held."""
    stop_after_failures: int | None = None
    """Once so many jobs have failed for good no other is submitted; those that were go on. null for never."""
    slow_node_factor: float | None = None
    """A node where a job that calls `report_progress` is so many times slower than its like on other nodes (same
    overrides but for seed, lr, learning_rate and weight_decay) is avoided by the next attempts. null for never."""
    heartbeat_timeout_minutes: float | None = None
    """A job that has not called `report_progress` for so long hangs: it is ended and tried again. null for never."""
    submit_confirm_timeout_seconds: float = 120.0
    """A job that SLURM does not list is given up after this, unless it reports progress meanwhile."""
    on_event: str | None = None
    """Told of held jobs, slow nodes and the end: a command, which gets JSON on its input, or an http(s) address. Hydra
    writes settings into each job's folder: ${oc.env:NAME} keeps a secret."""
    tick_seconds: float | None = None
    """Interval at which the cluster is observed; null takes 0.1 on this machine, 30 under SLURM."""
    root: str = "multirun"
    """Folder for the state of multiruns: ROOT/sweeps/NAME."""
    take_over: bool = False
    """Replace a controller of this multirun on another host that is known to be dead, without waiting for its lease to
    end."""
    name: str | None = None
    """Name of the multirun; null names it by the application and the command line."""


class QuotaLauncher(Launcher):
    """Waits for its jobs and returns what they returned. The same command continues a killed one."""

    def __init__(self, **settings: Any) -> None:
        """`settings` are read from the config of each job: some may interpolate its values."""
        self.multirun: Multirun | None = None

    def setup(self, *, hydra_context: "HydraContext", task_function: "TaskFunction", config: "DictConfig") -> None:
        from hydra.errors import CompactHydraException

        from muloco_sweeps import claim_names

        # The application's folder, which is on the path, may hold a `sweeps` of its own.
        claim_names(error=CompactHydraException)
        from sweeps.hydra_apps.launch import Multirun, hydra_errors
        from sweeps.hydra_apps.launcher_settings import check_names

        with hydra_errors():
            check_names(config.hydra.launcher, QuotaLauncherConf)
        self.multirun = Multirun(hydra_context, task_function, config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> "Sequence[JobReturn]":
        assert self.multirun is not None
        return self.multirun.launch(job_overrides, initial_job_idx)

    def detach(self, job_overrides: Sequence[Sequence[str]]) -> None:
        """Submits and returns: a controller in the background continues."""
        assert self.multirun is not None
        self.multirun.detach(job_overrides)


def _without_settings(instantiate: Callable[..., Launcher]) -> Callable[..., Launcher]:
    """Hydra resolves a launcher's settings before it makes it, and so before there are jobs, whose values some of ours
    are to take: this one is made without them."""

    def make(
        plugins: Plugins, hydra_context: "HydraContext", task_function: "TaskFunction", config: "DictConfig"
    ) -> Launcher:
        chosen = config.hydra.launcher
        if chosen is None or chosen.get("_target_") != QuotaLauncherConf._target_:
            return instantiate(plugins, hydra_context=hydra_context, task_function=task_function, config=config)
        launcher = QuotaLauncher()
        launcher.setup(hydra_context=hydra_context, task_function=task_function, config=config)
        return launcher

    return make


Plugins.instantiate_launcher = _without_settings(Plugins.instantiate_launcher)  # type: ignore[method-assign]
ConfigStore.instance().store(group="hydra/launcher", name="quota", node=QuotaLauncherConf, provider="muloco-sweeps")
