import hydra
from told import tell

LOG = open("log.txt", "a")  # noqa: SIM115


@hydra.main(version_base=None, config_path=None)
def main(config):
    print("at work", config.x, file=LOG, flush=True)
    tell(config.x)


if __name__ == "__main__":
    main()
