import threading

import hydra
from told import tell


@hydra.main(version_base=None, config_path=None)
def main(config):
    tell(config.x)
    return {"loss": config.x, "lock": threading.Lock()}


if __name__ == "__main__":
    main()
