import hydra
from omegaconf import OmegaConf
from told import tell

OmegaConf.register_new_resolver("double", lambda x: 2 * x)


@hydra.main(version_base=None, config_path=None)
def main(config):
    tell(OmegaConf.create({"x": config.x, "y": "${double:${x}}"}).y)


if __name__ == "__main__":
    main()
