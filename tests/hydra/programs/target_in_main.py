import hydra
from hydra.utils import instantiate
from told import tell


class Model:
    def __init__(self, size):
        self.size = size


@hydra.main(version_base=None, config_path=None)
def main(config):
    model = instantiate({"_target_": "__main__.Model", "size": config.x})
    assert type(model) is Model
    tell(model.size)


if __name__ == "__main__":
    main()
