import threading

import hydra
from told import tell

LOCK = threading.Lock()


def timed(function):
    def wrapper(config):
        with LOCK:
            return function(config)

    return wrapper


@hydra.main(version_base=None, config_path=None)
@timed
def main(config):
    assert LOCK.locked()
    tell(config.x)


if __name__ == "__main__":
    main()
