import enum
import functools

import hydra
from told import tell


class Kind(enum.Enum):
    SMALL = 1
    LARGE = 2


@functools.lru_cache
def cube(number):
    return number**3


@hydra.main(version_base=None, config_path=None)
def main(config):
    tell((cube(config.x), Kind(1 + config.x % 2) is Kind.SMALL))
    return Kind(1)


if __name__ == "__main__":
    main()
