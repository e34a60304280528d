import functools

import hydra
from told import tell


def run(unit, config):
    tell((config.x, unit))


if __name__ == "__main__":
    task = functools.partial(run, "steps")
    functools.update_wrapper(task, run)
    hydra.main(version_base=None, config_path=None)(task)()
