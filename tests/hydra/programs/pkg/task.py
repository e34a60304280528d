import threading

import hydra
from told import tell

from pkg.tools import square

LOCK = threading.Lock()


@hydra.main(version_base=None, config_path=None)
def main(config):
    with LOCK:
        tell((square(config.x), __name__))
