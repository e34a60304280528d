"""`muloco-train`: composes one run from names and values, checks it, and trains it here.

Hydra reads the command line, so that `--multirun`, `--cfg job`, `--info` and tab completion are Hydra's own.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

from muloco_runner.config import ConfigError
from muloco_runner.paths import announce, choices_of, config_dir, take_config_path, use_config_path
from muloco_runner.record import ExitCode
from muloco_sweeps import environment_variable

if TYPE_CHECKING:
    from omegaconf import DictConfig

HELP = """\
muloco-train: train one run, here.

  muloco-train algorithm=muloco model=42k              MuLoCo on a model of 42k parameters
  muloco-train algorithm=diloco method.num_workers=4   DiLoCo with K=4 workers in this process
  muloco-train --multirun algorithm=ddp_muon,muloco seed=0,1
  torchrun --nproc-per-node 4 --no-python muloco-train algorithm=muloco method.num_workers=4

Choices, each a file under conf/ (your own ./conf, the built-in ones, those that installed packages offer):
{choices}
Values, each a key with a dot for each level:
  global_batch_tokens=8192          tokens in one inner step, summed over all workers
  tokens_per_parameter=20           token budget over parameters
  inner_optimizer.lr=0.02           peak learning rate
  method.sync_interval=30           inner steps between two outer steps (H)
  method.outer_optimizer.lr=0.7     outer learning rate; .momentum=0.6
  data=text data.path=FOLDER        any text files, as bytes; data=prepared for what `muloco-data prepare` wrote
  data.validation={{books: FOLDER}}   loss on further text, recorded beside the main one's; quote it for your shell
  seed=0   precision=bfloat16   root=results   execution.device=cpu
  execution.keep=final              checkpoints that stay: none, final, best, last_3, [1000,2000]; see muloco-model
  execution.wandb_project=NAME      records go to Weights & Biases too; .wandb_mode=offline: the controller sends them
  execution.tensorboard=true        records for TensorBoard, in RUN/tensorboard
  execution.profile=[20,25]         torch's profiler traces these steps: RUN/attempts/N/trace-RANK.json

The same values name the same run: its folder is ROOT/runs/RUN_ID. A finished run is not trained again, an interrupted
one continues where its last checkpoint left it.

  --estimate       GB a GPU, by number of GPUs, and stop     --multirun   one run for each combination
  --cfg job        print the composed config and stop
  --info           where each value comes from               --hydra-help all of Hydra's flags
  --check-gpu      is this GPU fit, and how fast will it train? Minutes; --check-gpu --help tells more
  --config-dir DIR own choices, found before the built-in ones; may be said several times. So are those under ./conf,
                   and in the folders that MULOCO_CONF lists; conf_path=none turns these off
  --same-code      go on with a run whose own code (_target_) has changed under the same version

Exit codes: 0 finished (also when it diverged: that is a result), 2 a mistake in the command, 65 the run cannot be
trained on this data, 70 out of memory, 75 checkpointed after a signal or at execution.wall_minutes, 1 anything else.
"""

_FULL_ERROR = "HYDRA_FULL_ERROR"
_SAME_CODE = "--same-code"
_CHECK_GPU = "--check-gpu"
_MULTIRUN = {"--multirun", "-m"}
_GROUPS = (
    *("algorithm", "model", "method", "method/outer_optimizer", "method/compression"),
    *("inner_optimizer", "schedule", "data", "cluster"),
)


def main() -> None:
    """The console script. Never returns: exits with one of `ExitCode`."""
    try:
        arguments, path = take_config_path(sys.argv[1:])
    except ConfigError as error:
        print(f"muloco-train: {error}", file=sys.stderr)
        sys.exit(ExitCode.USAGE)
    use_config_path(path)
    same_code = _SAME_CODE in arguments
    arguments = [word for word in arguments if word != _SAME_CODE]
    if same_code and _MULTIRUN & set(arguments):
        print(f"muloco-train: {_SAME_CODE}: not with --multirun: say muloco-sweep launch {_SAME_CODE}", file=sys.stderr)
        sys.exit(ExitCode.USAGE)
    sys.argv[1:] = arguments
    if arguments[:1] != [_CHECK_GPU] and {"--help", "-h"} & set(arguments):
        print(help_text(), end="")
        sys.exit(0)
    if arguments[:1] == [_CHECK_GPU]:
        from muloco_runner.machine_check.sections import main as check_machine

        sys.exit(check_machine(arguments[1:], program=f"muloco-train {_CHECK_GPU}"))
    if (line := announce(path)) and os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)
    if "--estimate" in arguments:
        sys.exit(_estimate([argument for argument in arguments if argument != "--estimate"]))
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from muloco_runner.compose import register
    from muloco_runner.train_run import train_composed

    register()
    sys.argv[1:] = _for_hydra(arguments)
    endings: list[ExitCode] = []

    def task(tree: DictConfig) -> float | None:
        try:
            code, folder = train_composed(tree, same_code)
        except (ConfigError, OmegaConfBaseException) as error:
            _give_up(error)
        endings.append(code)
        if code is ExitCode.WANTS_MORE_TIME:
            # The rest of a multirun would begin only to be stopped.
            sys.exit(code)
        result = folder.read_result()
        return result.validation_loss if result else None

    try:
        # Hydra would print an error over many lines and exit; this makes it raise instead.
        with environment_variable(_FULL_ERROR, "1"):
            hydra.main(config_path=str(config_dir()), config_name="config", version_base="1.3")(task)()
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        _give_up(error)
    sys.exit(max(endings, default=ExitCode.FINISHED))


def _for_hydra(arguments: list[str]) -> list[str]:
    """The command line in words that Hydra takes as they are meant."""
    from muloco_runner.compose import as_meant, check_one_model, unreadable, with_foreign_models

    try:
        if _MULTIRUN & set(arguments):
            check_one_model(arguments)
            words = [_as_choice(as_meant(word)) for word in arguments]
        else:
            words = with_foreign_models(arguments)
        if wrong := unreadable(words):
            raise ConfigError(wrong)
        return words
    except ConfigError as error:
        _give_up(error)


def _as_choice(word: str) -> str:
    """A value of a sweep's runs as a list of one: Hydra would set it before the sweep has chosen what it belongs to,
    such as method.num_workers=4 where only some runs have workers."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    from muloco_runner.compose import AROUND_RUNS

    try:
        (override,) = OverridesParser.create().parse_overrides([word])
    except HydraException:
        return word
    # A sweep's file by its path is no choice that Hydra could load.
    is_path = override.key_or_group == "sweep" and "/" in override.get_value_element_as_str()
    is_around = not is_path and override.key_or_group.split(".")[0] in (*AROUND_RUNS, "sweep")
    if is_around or override.is_hydra_override() or override.is_sweep_override() or override.is_delete():
        return word
    return f"{override.get_key_element()}=choice({override.get_value_element_as_str()})"


def _estimate(overrides: list[str]) -> int:
    """Prints what the run would take of each GPU's memory."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from muloco_runner.compose import compose_app_config
    from muloco_runner.memory.command import show_estimate

    try:
        if _MULTIRUN & set(overrides):
            raise ConfigError("--estimate is for one run: leave --multirun out; muloco-sweep plan estimates a sweep")
        app = compose_app_config(overrides)
        show_estimate(app.run, app.execution)
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        _give_up(error)
    return ExitCode.FINISHED


def _give_up(error: Exception) -> NoReturn:
    """A user's mistake: one line, and nothing left behind."""
    from muloco_runner.compose import one_line

    print(f"muloco-train: {one_line(error)}", file=sys.stderr)
    sys.exit(ExitCode.USAGE)


def help_text() -> str:
    """`--help`, with the names found under conf/; reads file names only, so that it answers at once."""
    lines = []
    for group in _GROUPS:
        names = choices_of(group)
        lines.append(f"  {group + '=':24}{' | '.join(names)}\n")
    return HELP.format(choices="".join(lines))


if __name__ == "__main__":
    main()
