"""How often runs see their text: the number of epochs that a budget takes, and the size from which on text repeats."""

from __future__ import annotations

from collections.abc import Sequence

from muloco_runner.config import RunConfig, TargetDataConfig
from muloco_runner.data.identity import Contents, contents_of


def describe_epochs(run: RunConfig) -> str:
    """One line on a run and its text, two where it asks for more validation than there is; empty for a text that is not
    there."""
    return "\n".join(epochs_of_sweep([run]))


def epochs_of_sweep(runs: Sequence[RunConfig]) -> list[str]:
    """One line for each text that the runs are trained on, and one where less of it is held out than they ask for; none
    for a text that is not there."""
    by_data: dict[str, list[RunConfig]] = {}
    for run in runs:
        by_data.setdefault(repr(run.data), []).append(run)
    lines = []
    for own in by_data.values():
        data = own[0].data
        contents = contents_of(data)
        if contents is not None:
            one = data.label if isinstance(data, TargetDataConfig) else data.path or data.source
            name = "mixture of " + ", ".join(data.mixture) if data.mixture else one
            lines.append(_line(own, name, contents.train_tokens))
            lines += _validation_lines(own, name, contents)
            lines += _named_set_lines(own)
    return lines


def _validation_lines(runs: Sequence[RunConfig], name: str, contents: Contents) -> list[str]:
    from muloco_runner.data.mixed_split import num_validation_sequences

    wanted = runs[0].data.validation_tokens
    lengths = {run.model.sequence_length for run in runs}
    evaluated = [
        length * num_validation_sequences(contents.validation_tokens, contents.shares, wanted, length)
        for length in lengths
    ]
    if evaluated == [wanted // length * length for length in lengths]:
        return []
    taken = " to ".join(dict.fromkeys(f"{tokens:,}" for tokens in (min(evaluated), max(evaluated))))
    return [f"data {name}: validation on {taken} tokens: no more are held out for data.validation_tokens={wanted:,}"]


def _named_set_lines(runs: Sequence[RunConfig]) -> list[str]:
    """One line on the named validation sets, and which of them are smaller than what is asked for."""
    data = runs[0].data
    if data.validation is None:
        return []
    from muloco_runner.data.validation_sets import load_validation_sets

    wanted, length = data.validation_tokens, runs[0].model.sequence_length
    sizes = {name: one.split.num_tokens - 1 for name, one in load_validation_sets(data).items()}
    taken = ", ".join(f"{name} on {min(size, wanted) // length * length:,} tokens" for name, size in sizes.items())
    fewer = any(size < wanted for size in sizes.values())
    note = f" (data.validation_tokens={wanted:,} where there are as many)" if fewer else ""
    return [f"named validation sets: {taken}{note}"]


def _line(runs: Sequence[RunConfig], name: str, train_tokens: int) -> str:
    epochs = sorted(run.num_tokens / train_tokens for run in runs)
    taken = " to ".join(dict.fromkeys(_number(one) for one in (epochs[0], epochs[-1])))
    budgets = sorted({run.tokens_per_parameter for run in runs})
    sizes = [
        f"{train_tokens / budget:,.0f} parameters at {budget:g} tokens each"
        for budget in budgets[:: len(budgets) - 1 or 1]
    ]
    count = "" if len(runs) == 1 else f" ({sum(one > 1 for one in epochs):,} of {len(runs):,} runs repeat it)"
    is_built_in = name == runs[0].data.source
    more = "; your own text: data=prepared data.path=FOLDER" if is_built_in and len(runs) > 1 and epochs[-1] > 1 else ""
    return (
        f"data {name}: {train_tokens:,} training tokens, {taken} epochs{count}; text repeats above {', '.join(sizes)}"
        f"{more}"
    )


def _number(epochs: float) -> str:
    if epochs >= 100:
        return f"{epochs:,.0f}"
    return f"{epochs:.2f}" if epochs >= 0.1 else f"{epochs:.2g}"
