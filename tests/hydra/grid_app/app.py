"""An application with files of choices and of sweeps: it multiplies, and fails where a file in its folder says so."""

import logging
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> float:
    cwd = Path(HydraConfig.get().runtime.cwd)
    with open(cwd / "starts", "a") as file:
        file.write(f"{config.model.name} {config.lr}\n")
    if (cwd / "broken").exists() and config.lr == float((cwd / "broken").read_text()):
        raise ZeroDivisionError(f"lr {config.lr} is broken")
    logging.getLogger(__name__).debug("multiplies")
    return float(config.model.width * config.lr)


if __name__ == "__main__":
    main()
