import atexit
import threading
import time
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from told import tell


def write_late(file):
    time.sleep(0.2)
    file.write("thread\n")


@hydra.main(version_base=None, config_path=None)
def main(config):
    tell(config.x)
    folder = Path(HydraConfig.get().runtime.output_dir)
    main.file = open(folder / "result", "w")  # noqa: SIM115
    main.file.write("task\n")
    atexit.register((folder / "exit").write_text, "handler")
    threading.Thread(target=write_late, args=(main.file,)).start()


if __name__ == "__main__":
    main()
