from pathlib import Path

import hydra
from told import tell


@hydra.main(version_base=None, config_path=None)
def main(config):
    from lazily import WORD

    tell((config.x, WORD, Path(__file__).with_name("words.txt").read_text().strip(), __name__))


if __name__ == "__main__":
    main()
