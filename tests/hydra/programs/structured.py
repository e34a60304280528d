from dataclasses import dataclass

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from told import tell


@dataclass
class Config:
    x: int = 0


@dataclass
class Result:
    value: int


ConfigStore.instance().store(name="structured", node=Config)


@hydra.main(version_base=None, config_path=None, config_name="structured")
def main(config):
    assert OmegaConf.get_type(config) is Config
    tell(config.x)
    return Result(config.x)


if __name__ == "__main__":
    main()
