import pickle

import hydra
from told import tell


class State:
    def __init__(self, x):
        self.x = x


@hydra.main(version_base=None, config_path=None)
def main(config):
    text = pickle.dumps(State(config.x))
    again = pickle.loads(text)
    assert isinstance(again, State)
    tell((again.x, b"__main__" in text))


if __name__ == "__main__":
    main()
