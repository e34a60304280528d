import os

import hydra
from omegaconf import OmegaConf
from told import tell

SETTINGS = {}


@hydra.main(version_base=None, config_path=None)
def main(config):
    value = OmegaConf.create({"x": config.x, "y": "${triple:${x}}"}).y
    tell((value, os.environ["OF_THE_GUARD"], SETTINGS["unit"]))


if __name__ == "__main__":
    OmegaConf.register_new_resolver("triple", lambda x: 3 * x)
    os.environ["OF_THE_GUARD"] = "set"
    SETTINGS["unit"] = "nats"
    main()
    SETTINGS.clear()
