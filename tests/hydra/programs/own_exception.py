import hydra
from told import tell


class Trouble(Exception):
    def __init__(self, x, why):
        super().__init__(x, why)


@hydra.main(version_base=None, config_path=None)
def main(config):
    try:
        raise Trouble(config.x, "expected")
    except Trouble as trouble:
        tell(trouble.args)


if __name__ == "__main__":
    main()
