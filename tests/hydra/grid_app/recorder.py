"""A callback of the application: it writes down what Hydra tells it."""

from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class Recorder(Callback):
    def __init__(self, file: str) -> None:
        self.file = file

    def _say(self, words: str) -> None:
        with open(self.file, "a") as file:
            file.write(words + "\n")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._say("multirun starts")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        self._say("multirun ends")

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._say(f"job {HydraConfig.get().job.num} starts")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        self._say(f"job {HydraConfig.get().job.num} ends {job_return.status.name}")
