import multiprocessing

import hydra
from told import tell


class Task:
    def __init__(self, number):
        self.number = number


def square(task):
    return task.number**2


@hydra.main(version_base=None, config_path=None)
def main(config):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        tell(pool.map(square, [Task(config.x), Task(config.x + 1)]))


if __name__ == "__main__":
    main()
