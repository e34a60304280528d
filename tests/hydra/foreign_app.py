"""An application that knows nothing of this project but the name of a launcher: it squares numbers, slowly."""

import time
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig


@dataclass
class Config:
    number: int = 0
    seconds: float = 0.0
    gate: str = ""
    """A file that it waits for."""
    fails: bool = False
    part: str = "gpu"
    priority: str = "normal"


ConfigStore.instance().store(name="config", node=Config)


@hydra.main(version_base=None, config_path=None, config_name="config")
def main(config: Config) -> int:
    with open(Path(HydraConfig.get().runtime.cwd) / "starts", "a") as file:
        file.write(f"{config.number}\n")
    time.sleep(config.seconds)
    while config.gate and not Path(config.gate).exists():
        time.sleep(0.05)
    if config.fails:
        raise ValueError(f"cannot square {config.number}")
    (Path(HydraConfig.get().runtime.output_dir) / "square").write_text(str(config.number**2))
    return config.number**2


if __name__ == "__main__":
    main()
