import hydra
from told import tell


@hydra.main(version_base=None, config_path=None)
def main(config):
    tell(config.x)
    return config.x


if __name__ == "__main__":
    main()
