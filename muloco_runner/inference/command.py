"""`muloco-model`: what is done with the weights of a run."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muloco_runner.config import ConfigError
from muloco_runner.flags import Parser, Value, any_number, any_path, any_text, one_of, whole_number
from muloco_runner.record import AlreadyRunning, ExitCode, RecordError, RunFolder

if TYPE_CHECKING:
    from muloco_runner.inference.load import LoadedRun
    from muloco_runner.inference.shared_work import Ranks

DESCRIPTION = """\
Samples, exports, evaluates and continues trained models.

  muloco-model sample results/runs/RUN_ID --prompt 'def main' --tokens 200     continue a text
  muloco-model export results/runs/RUN_ID --out my_model                       as a Hugging Face folder
  muloco-model continue results/runs/RUN_ID --tokens-per-parameter 40          as if that had been asked for at once
  muloco-model eval results/runs/RUN_ID                validation loss, bits per byte, of each named set too
  muloco-model eval RUN --tasks hellaswag,arc_easy --limit 100   scores, kept in the run's evaluations/
  muloco-model eval results --tasks hellaswag          of every finished run there that keeps weights
  torchrun --no-python --nproc-per-node 4 muloco-model eval RUN --tasks hellaswag --device cuda   on four GPUs
  muloco-model eval RUN --validation books=data/books  loss on further text; trains nothing
  muloco-model sample 3fa --root demo --prompt 'import' --temperature 0        of the run 3fa... under demo/

RUN is a run's folder, or its id or the first digits of it under --root (default: results). Its weights are those of the
newest checkpoint, or of --step; of DiLoCo and MuLoCo the synchronised model's, or --worker K's own. A run keeps weights
where it was trained by itself, or with execution.keep=final in a sweep.
A run goes on from a checkpoint that the longer run would have come to itself: with schedule=wsd of its stable phase,
where execution.keep=[N] has kept one, and with schedule.max_warmup_fraction=1. schedule.decay_steps=N sets the decay in
steps.
Exit codes: 0 done, 2 a mistake in what was asked, of which one line tells, 130 interrupted.
"""


def main() -> None:
    """The console script. Never returns: exits with one of `ExitCode`."""
    try:
        arguments = make_parser().parse_args()
        code = arguments.run(arguments)
    except ConfigError as error:
        print(f"muloco-model: {error}", file=sys.stderr)
        sys.exit(ExitCode.USAGE)
    except OSError as error:
        print(f"muloco-model: {error.filename or ''}: {error.strerror}", file=sys.stderr)
        sys.exit(ExitCode.CRASH)
    except KeyboardInterrupt:
        print("muloco-model: interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(code)


def make_parser() -> Parser:
    parser = Parser(prog="muloco-model", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="name")
    sampling = _command(commands, "sample", "continue a text", _sample)
    prompt, one = Value("a text in UTF-8", _in_utf8), whole_number(200, least=1)
    sampling.add_argument(
        "--prompt", type=prompt, action="append", required=True, metavar="TEXT", help="may be said several times"
    )
    sampling.add_argument("--tokens", type=one, default=200, metavar="N", help="new tokens of each; default 200")
    sampling.add_argument(
        "--temperature", type=any_number(0.8), default=1.0, metavar="T", help="0: the likeliest; default 1"
    )
    sampling.add_argument("--top-k", type=whole_number(40, 1), metavar="K", help="draw among the K likeliest tokens")
    sampling.add_argument(
        "--top-p", type=any_number(0.9, is_open=True), metavar="P", help="draw among the likeliest that make up P"
    )
    sampling.add_argument(
        "--seed", type=whole_number(0), default=0, metavar="N", help="the same seed draws the same; default 0"
    )
    sampling.add_argument(
        "--samples", type=whole_number(4, 1), default=1, metavar="N", help="of each prompt; default 1"
    )
    sampling.add_argument("--json", action="store_true", help="one line of JSON for each sample")
    exporting = _command(commands, "export", "write a folder that other programs load", _export)
    exporting.add_argument(
        "--format", type=one_of("hf", "huggingface"), default="hf", metavar="NAME", help="hf: Hugging Face's; default"
    )
    exporting.add_argument("--out", type=any_path("a new folder"), required=True, metavar="DIR", help="a new folder")
    exporting.add_argument(
        "--dtype", type=one_of("float32", "bfloat16"), default="float32", metavar="NAME", help="float32 or bfloat16"
    )
    going_on = _command(commands, "continue", "train on to another budget", _continue)
    going_on.add_argument(
        "--tokens-per-parameter", type=any_number(40, is_open=True), required=True, metavar="D/N", help="the new budget"
    )
    going_on.add_argument(
        "--only-prepare", action="store_true", help="make the run's folder; what trains the run goes on from there"
    )
    going_on.add_argument(
        "--set",
        type=any_text("execution.KEY=VALUE"),
        action="append",
        default=[],
        metavar="execution.KEY=VALUE",
        help="how it is carried out, such as execution.keep=final; may be said several times",
    )
    evaluating = _command(
        commands, "eval", "validation loss, or scores of lm-evaluation-harness", _evaluate, of_sweep=True
    )
    evaluating.add_argument(
        "--tasks", type=any_text("names"), metavar="A,B", help="of lm-eval; default: the loss alone"
    )
    evaluating.add_argument(
        "--validation",
        type=any_text("NAME=PATH"),
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="loss on this text as well, a prepared folder or, of a run on bytes, text; may be said several times",
    )
    evaluating.add_argument(
        "--include", type=any_path("a folder"), metavar="DIR", help="own tasks, YAML files of lm-eval"
    )
    evaluating.add_argument(
        "--limit", type=whole_number(100, 1), metavar="N", help="examples of each task; default: all"
    )
    evaluating.add_argument("--batch", type=whole_number(16, 1), default=16, metavar="N", help="sequences; default 16")
    evaluating.add_argument("--json", action="store_true", help="one line of JSON")
    return parser


def _in_utf8(text: str) -> str:
    text.encode()  # raises `UnicodeEncodeError`, a `ValueError`, for bytes that are no text
    return text


def _command(commands: Any, name: str, text: str, run: Any, of_sweep: bool = False) -> Parser:
    command: Parser = commands.add_parser(name, help=text, description=text)
    folder = any_path("a folder")
    more = "; or a folder that holds runs/, for all of them" if of_sweep else ""
    command.add_argument(
        "model",
        type=any_text("a folder or an id"),
        metavar="RUN",
        help=f"a run's folder, or its id under --root{more}",
    )
    command.add_argument(
        "--root", type=folder, default=Path("results"), metavar="ROOT", help="holds runs/RUN_ID; default: results"
    )
    command.add_argument("--step", type=whole_number(1000, 1), metavar="N", help="of which checkpoint; the newest")
    command.add_argument(
        "--worker", type=whole_number(0), metavar="K", help="its own weights, not the synchronised model's"
    )
    command.add_argument(
        "--device",
        type=any_text("a device, such as cuda"),
        default="cpu",
        metavar="NAME",
        help="of torch; default: cpu",
    )
    command.set_defaults(run=run)
    return command


def find_folder(said: str, root: Path) -> Path:
    """The folder of the run that is named by it, or by the first digits of its id. None, or several, raise
    `ConfigError`."""
    if RunFolder(said).config_file.is_file():
        return Path(said)
    found = [folder.path for folder in RunFolder.all_under(root) if folder.run_id.startswith(said)]
    if len(found) != 1:
        what = f"{len(found)} runs under {root} start with it" if found else f"no run's folder, and no run under {root}"
        raise ConfigError(f"{said}: {what}: give a folder ROOT/runs/RUN_ID, or more digits of an id and --root ROOT")
    return found[0]


def _load_or_why(arguments: argparse.Namespace, folder: Path, step: int | None) -> LoadedRun | str:
    """One of many runs, or why it cannot be loaded."""
    try:
        return _load(arguments, folder, step)
    except ConfigError as error:
        return str(error)


def _load(arguments: argparse.Namespace, folder: Path | None = None, step: int | None = None) -> LoadedRun:
    from muloco_runner.inference.load import load_run

    folder = folder or find_folder(arguments.model, arguments.root)
    loaded = load_run(folder, step=step or arguments.step, worker=arguments.worker, device=arguments.device)
    end = f" of {loaded.config.num_steps}" if loaded.step != loaded.config.num_steps else ""
    print(f"{loaded.config.algorithm} {folder}: step {loaded.step}{end}", file=sys.stderr, flush=True)
    return loaded


def _sample(arguments: argparse.Namespace) -> ExitCode:
    from muloco_runner.inference.sample import SamplingOptions, check_memory, sample
    from muloco_runner.training.precision import DTYPES

    options = SamplingOptions(arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed)
    loaded = _load(arguments)
    model = loaded.transformer
    encoded = [loaded.encode(text) for text in arguments.prompt]
    length, known = max(map(len, encoded)) + arguments.tokens, loaded.config.model.sequence_length
    check_memory(model, len(encoded) * arguments.samples, length, DTYPES[loaded.config.precision])
    texts = [text for text in arguments.prompt for _ in range(arguments.samples)]
    prompts = [tokens for tokens in encoded for _ in range(arguments.samples)]
    if length > known:
        print(f"{length} tokens are more than the {known} that the model was trained on at once", file=sys.stderr)
    started = time.monotonic()
    rows = sample(model, prompts, arguments.tokens, options, end=loaded.end, dtype=DTYPES[loaded.config.precision])
    seconds, number = time.monotonic() - started, sum(map(len, rows))
    for text, row in zip(texts, rows, strict=True):
        continuation = loaded.decode(row)
        values = {"prompt": text, "text": continuation, "tokens": row}
        print(json.dumps(values) if arguments.json else f"{text}{continuation}", flush=True)
    print(f"{number:,} tokens in {seconds:.1f} s, {number / seconds:,.0f} tokens/s", file=sys.stderr)
    return ExitCode.FINISHED


def _evaluate(arguments: argparse.Namespace) -> ExitCode:
    import torch

    from muloco_runner.distributed.rendezvous import process_rank
    from muloco_runner.inference.shared_work import evaluating_ranks

    sets = _named_paths(arguments)
    process = process_rank()
    if arguments.device == "cuda" and process.num_ranks > 1:
        arguments.device = f"cuda:{process.local_rank}"
    many = bool(_runs_below(arguments.model))
    one = Path(arguments.model) if many else find_folder(arguments.model, arguments.root)
    left_out: Counter[str] = Counter()
    # On the CPU: what ranks exchange are answers.
    with evaluating_ranks(process, torch.device("cpu"), one) as ranks:
        # While they look, runs may begin, end and leave checkpoints: all ranks go by what the first one sees.
        folders = ranks.agreed(lambda: _runs_below(arguments.model) if many else [one])
        for folder in folders:
            step = arguments.step or ranks.agreed(partial(_newest, folder))
            why = ranks.agreed(partial(_why_left_out, folder, arguments)) if many else None
            loaded = why or (_load_or_why if many else _load)(arguments, folder, step)
            if isinstance(loaded, str):
                left_out[loaded] += 1
                continue
            found, line = _evaluated(loaded, arguments, sets, ranks, many)
            if ranks.rank == 0:
                print(json.dumps(found) if arguments.json else line, flush=True)
        reasons = "; ".join(f"{count} {why}" for why, count in left_out.items())
        if left_out and left_out.total() == len(folders):
            raise ConfigError(f"{arguments.model}: none of {len(folders)} runs can be evaluated: {reasons}")
        if left_out and ranks.rank == 0:
            print(f"{arguments.model}: left out of {len(folders)} runs: {reasons}", file=sys.stderr)
    return ExitCode.FINISHED


def _newest(folder: Path) -> int | None:
    """The step of the run's newest checkpoint; None without one."""
    return max(RunFolder(folder).checkpoint_steps(), default=None)


def _named_paths(arguments: argparse.Namespace) -> dict[str, str]:
    """The sets of --validation; options without an effect raise `ConfigError`."""
    useless = [name for name in ("include", "limit") if getattr(arguments, name) is not None]
    if arguments.tasks is None and useless:
        raise ConfigError(f"--{useless[0]} has no effect without --tasks: drop it, or name tasks")
    if arguments.tasks is not None:
        _task_names(arguments.tasks)
    if arguments.tasks is not None and arguments.validation:
        raise ConfigError("--validation has no effect with --tasks: say them in two commands")
    pairs = [text.partition("=") for text in arguments.validation]
    for name, equals, path in pairs:
        if not (name and equals and path):
            raise ConfigError(f"--validation {name}{equals}{path}: give NAME=PATH, such as books=data/books")
    names = [name for name, _, _ in pairs]
    if len(set(names)) < len(names):
        raise ConfigError(f"--validation: {', '.join(names)}: each name once")
    return {name: path for name, _, path in pairs}


def _runs_below(said: str) -> list[Path]:
    """The runs of a folder that holds runs/; none where it is a run itself, or none."""
    is_run = RunFolder(said).config_file.is_file()
    return [] if is_run else [folder.path for folder in RunFolder.all_under(said)]


def _why_left_out(folder: Path, arguments: argparse.Namespace) -> str | None:
    """Why one of many runs is not evaluated; None where it is."""
    run = RunFolder(folder)
    try:
        result = run.read_result()
    except RecordError as error:
        return str(error)
    if result is None:
        return "not finished"
    steps = run.checkpoint_steps()
    if not steps:
        return "diverged" if result.diverged else "without weights (execution.keep=final keeps them)"
    if arguments.step is not None and arguments.step not in steps:
        return f"without a checkpoint of step {arguments.step}"
    return None


def _evaluated(
    loaded: LoadedRun, arguments: argparse.Namespace, sets: dict[str, str], ranks: Ranks, many: bool
) -> tuple[dict[str, Any], str]:
    """What was found, and the same as text; of many runs one line each, with the run and the step of its weights."""
    from muloco_runner.inference.evaluation import tasks, validation

    if arguments.tasks is not None:
        names = _task_names(arguments.tasks)
        found = tasks(loaded, names, arguments.include, arguments.limit, arguments.batch, ranks)
        texts = [f"{name}  {key} {value:.4f}" for name in names for key, value in found[name]["scores"].items()]
    else:
        found = validation(loaded, sets, ranks)
        texts = [_loss_text("validation loss", found), *(_loss_text(n, v) for n, v in found.get("named", {}).items())]
    if not many:
        return found, "\n".join(texts)
    early = "" if loaded.step == loaded.config.num_steps else f" (step {loaded.step} of {loaded.config.num_steps})"
    return found, f"{loaded.config.run_id}{early}  {'; '.join(texts)}"


def _task_names(said: str) -> list[str]:
    """Names with commas between; an empty one raises `ConfigError`."""
    names = list(dict.fromkeys(name.strip() for name in said.split(",")))
    if not all(names):
        raise ConfigError(f"--tasks {said}: an empty name: give names with commas between, such as hellaswag,arc_easy")
    return names


def _loss_text(name: str, found: dict[str, Any]) -> str:
    if found["bits_per_byte"] is None:
        return f"{name} not finite"
    return f"{name} {found['validation_loss']:.4f} nats per token, {found['bits_per_byte']:.4f} bits per byte"


def _continue(arguments: argparse.Namespace) -> ExitCode:
    from muloco_runner.compose import compose_app_config
    from muloco_runner.inference.continuation import check_begun_from, prepare_continuation, runs_of_budgets
    from muloco_runner.job import check_can_run, run_with_progress
    from muloco_runner.train_run import check_execution, last_line, next_attempt

    for word in arguments.set:
        if not word.startswith("execution."):
            raise ConfigError(
                f"--set {word}: a run goes on as it began, so that only execution.KEY=VALUE can be said here"
            )
        if word.startswith("execution.device="):
            raise ConfigError(f"--set {word}: say --device {word.partition('=')[2]}")
    if arguments.worker is not None:
        raise ConfigError("--worker has no effect on continue, which takes all workers: leave it out")
    if arguments.set and arguments.only_prepare:
        raise ConfigError("--set has no effect with --only-prepare: say it to what trains the run")
    execution = compose_app_config([*arguments.set, f"execution.device={arguments.device}"]).execution
    parent = RunFolder(find_folder(arguments.model, arguments.root))
    _, run = runs_of_budgets(parent, arguments.tokens_per_parameter)
    is_over = RunFolder.of(parent.path.parents[1], run.run_id).result_file.exists()
    if not (arguments.only_prepare or is_over):
        check_execution(run, execution)
        check_can_run(run, parent)
    try:
        child = prepare_continuation(parent, arguments.tokens_per_parameter, arguments.step)
    except AlreadyRunning as error:
        raise ConfigError(str(error)) from None
    check_begun_from(child, parent, arguments.step)
    if is_over and arguments.set:
        print(f"{child.path} has its result: {' '.join(arguments.set)} changes nothing there", file=sys.stderr)
    print(f"{parent.run_id} goes on as {child.run_id}: {child.path}", flush=True)
    if arguments.only_prepare:
        return ExitCode.FINISHED
    code = run_with_progress(child, execution, next_attempt(child))
    print(last_line(child, child.read_result()), flush=True)
    return code


def _export(arguments: argparse.Namespace) -> ExitCode:
    from muloco_runner.inference.export import export_run

    loaded = _load(arguments)
    export_run(loaded, arguments.out, arguments.dtype)
    folder = shlex.quote(str(arguments.out))
    print(f"{folder}  Gemma3ForCausalLM, {arguments.dtype}; init_from={folder} or model=hf:{folder} brings it back")
    return ExitCode.FINISHED


if __name__ == "__main__":
    main()
