import hydra
from told import tell

from .tools import LOCK, square


@hydra.main(version_base=None, config_path=None)
def main(config):
    assert not LOCK.locked()
    tell((square(config.x), __name__, __package__))


if __name__ == "__main__":
    main()
