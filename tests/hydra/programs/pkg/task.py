import threading

import hydra
from told import tell

from pkg.tools import square

LOCK = threading.Lock()
STATE = {"unit": "none"}


@hydra.main(version_base=None, config_path=None)
def main(config):
    with LOCK:
        tell((square(config.x), STATE["unit"], __name__))
