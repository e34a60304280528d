"""A run's model as lm-evaluation-harness takes one: likelihoods and continuations, in batches, without an export.

Axes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from muloco_runner.config import ConfigError
from muloco_runner.inference.load import LoadedRun
from muloco_runner.inference.sample import SamplingOptions, sample
from muloco_runner.inference.shared_work import Ranks
from muloco_runner.training.precision import DTYPES

try:
    import lm_eval
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError:
    raise ConfigError("tasks need lm-evaluation-harness: pip install 'muloco-sweeps[eval]'") from None

_NEW_TOKENS = 256
"""Of a continuation where a task does not say."""

Found = TypeVar("Found")


def scores_of(
    loaded: LoadedRun, names: Sequence[str], include: Path | None, limit: int | None, batch: int, ranks: Ranks
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Versions, and of each task its scores; a name that is no task raises `ConfigError`."""
    manager = _task_manager(names, include)
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise ConfigError(f"--tasks: {', '.join(unknown)}: no such task; own ones lie in a folder given by --include")
    several = [name for name in names if name in manager.all_tags]
    if several:
        raise ConfigError(
            f"--tasks: {', '.join(several)}: a name for several tasks without a score of its own: name these"
        )
    found = lm_eval.simple_evaluate(
        model=LoadedModel(loaded, batch, ranks), tasks=list(names), limit=limit, task_manager=manager, log_samples=False
    )
    # On other ranks the harness may return nothing, by variables of their launcher.
    return ranks.agreed(lambda: _scores(names, found))


def _scores(names: Sequence[str], found: Any) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Versions and scores of what the harness returns."""
    return {"lm_eval": lm_eval.__version__}, {
        name: {
            # Names of metrics end with their filter; counts have none.
            "scores": {
                key: v for key, v in found["results"][name].items() if "," in key and isinstance(v, int | float)
            },
            "task_version": found["versions"].get(name),
        }
        for name in names
    }


def _task_manager(names: Sequence[str], include: Path | None) -> TaskManager:
    """Of own tasks alone where these are all that is asked for: to list the harness's own takes a while."""
    if include is not None:
        own = TaskManager(include_path=str(include), include_defaults=False)
        if all(name in own.all_tasks for name in names):
            return own
    return TaskManager(include_path=None if include is None else str(include))


class LoadedModel(LM):
    """The wrapper. Contexts are cut at their beginning to what the model was trained on at once.

    Ranks take batches in turn, the same batches whatever their number, and each answers all requests: to the harness
    every one of them is alone.
    """

    def __init__(self, loaded: LoadedRun, batch: int, ranks: Ranks) -> None:
        super().__init__()
        self._loaded, self._batch, self._ranks = loaded, batch, ranks
        self._length = loaded.config.model.sequence_length
        self._dtype = DTYPES[loaded.config.precision]

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation after its context, and whether it is the likeliest one."""
        return self._likelihoods([self._pair(*request.args) for request in requests])

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows."""
        found = []
        for request in requests:
            tokens = self._loaded.encode(request.args[0])
            windows = get_rolling_token_windows(tokens, self._prefix(), self._length, context_len=1)
            pairs = [make_disjoint_window(window) for window in windows]
            found.append(sum(likelihood for likelihood, _ in self._likelihoods(pairs)))
        return found

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """The likeliest continuation, or a drawn one, up to the first of the texts that end it."""
        kinds: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            kinds.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
        batches = []
        for indices in kinds.values():
            prompts = {index: self._loaded.encode(requests[index].args[0]) for index in indices}
            batches += [[(index, prompts[index]) for index in batch] for batch in self._batches(prompts)]
        settings = [request.args[1] for request in requests]
        return self._shared(batches, lambda batch: self._continued(batch, settings[batch[0][0]]), len(settings))

    def _continued(self, batch: Sequence[tuple[int, list[int]]], settings: dict[str, Any]) -> dict[int, str]:
        """Texts after the prompts of a batch, all of one kind, by their numbers."""
        if settings.get("do_sample") and settings.get("temperature", 1.0) > 0:
            options = SamplingOptions(temperature=settings.get("temperature", 1.0), top_p=settings.get("top_p"))
        else:
            options = SamplingOptions(temperature=0)
        until = settings.get("until") or []
        ends = [end for end in ([until] if isinstance(until, str) else until) if end]
        most = int(settings.get("max_gen_toks", _NEW_TOKENS))
        prompts = [(prompt or [self._prefix()])[-max(1, self._length - most) :] for _, prompt in batch]
        indices = [index for index, _ in batch]
        rows = sample(
            self._loaded.transformer,
            prompts,
            most,
            options,
            end=self._loaded.end,
            dtype=self._dtype,
            numbers=indices,
            is_over=lambda row: any(end in self._loaded.decode(row) for end in ends),
        )
        return {index: _cut(self._loaded.decode(row), ends) for index, row in zip(indices, rows, strict=True)}

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of both. Spaces at the end of a context belong to what follows, as tokenizers have it."""
        if not context:
            return [self._prefix()], self._loaded.encode(continuation)
        spaces = len(context) - len(context.rstrip())
        if spaces:
            context, continuation = context[:-spaces], context[-spaces:] + continuation
        together, before = self._loaded.encode(context + continuation), self._loaded.encode(context)
        return (before or [self._prefix()]), together[len(before) :]

    def _prefix(self) -> int:
        if self._loaded.end is None:
            raise ConfigError(
                "a task has an empty context, and the run's tokenizer no token that ends a document, which would stand "
                "before it: choose other tasks, or a run on data prepared with such a tokenizer"
            )
        return self._loaded.end

    def _likelihoods(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        rows = {index: [*context, *following] for index, (context, following) in enumerate(pairs)}
        return self._shared(
            list(self._batches(rows)), lambda batch: self._likelihoods_of(batch, rows, pairs), len(pairs)
        )

    @torch.no_grad()
    def _likelihoods_of(
        self, indices: Sequence[int], tokens: dict[int, list[int]], pairs: Sequence[tuple[list[int], list[int]]]
    ) -> dict[int, tuple[float, bool]]:
        rows = [tokens[index][-(self._length + 1) :] for index in indices]
        longest = max(map(len, rows)) - 1
        device = self._loaded.device
        # What stands behind a row is seen by nothing before it.
        tokens_BT = torch.tensor([row[:-1] + [0] * (longest - len(row) + 1) for row in rows], device=device)
        with torch.autocast(device.type, self._dtype, enabled=self._dtype != torch.float32):
            logits_BTV = self._loaded.model(tokens_BT)
        found = {}
        for index, row, logits_TV in zip(indices, rows, logits_BTV.float(), strict=True):
            count = min(len(pairs[index][1]), len(row) - 1)
            targets = torch.tensor(row[-count:], device=device)
            log_probabilities = logits_TV[len(row) - 1 - count : len(row) - 1].log_softmax(dim=-1)
            chosen = log_probabilities.gather(1, targets[:, None])
            found[index] = (float(chosen.sum()), bool((log_probabilities.argmax(dim=-1) == targets).all()))
        return found

    def _batches(self, rows: dict[int, list[int]]) -> Iterator[list[int]]:
        """Numbers of equal lengths together, the longest first, so that a batch that does not fit fails at once."""
        order = sorted(rows, key=lambda index: -len(rows[index]))
        for first in range(0, len(order), self._batch):
            yield order[first : first + self._batch]

    def _shared(self, batches: Sequence[Any], answer: Callable[[Any], dict[int, Found]], count: int) -> list[Found]:
        """The answers to requests 0 .. count-1, whose batches the ranks take in turn."""
        own: dict[int, Found] = {}
        for batch in batches[self._ranks.rank :: self._ranks.number]:
            own |= answer(batch)
        found = self._ranks.joined(own)
        return [found[index] for index in range(count)]


def _cut(text: str, ends: Sequence[str]) -> str:
    """The text before the first of its ends."""
    for end in ends:
        text = text.partition(end)[0]
    return text
