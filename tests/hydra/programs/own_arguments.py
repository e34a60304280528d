import argparse
import sys

import hydra
from told import tell

PARSER = argparse.ArgumentParser()
PARSER.add_argument("--tag", default="default")


@hydra.main(version_base=None, config_path=None)
def main(config):
    tell((config.x, ARGUMENTS.tag))


if __name__ == "__main__":
    ARGUMENTS, rest = PARSER.parse_known_args()
    sys.argv[1:] = rest
    main()
