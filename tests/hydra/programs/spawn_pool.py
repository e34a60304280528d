import concurrent.futures
import multiprocessing

import hydra
from told import tell


def square(number):
    return number**2


@hydra.main(version_base=None, config_path=None)
def main(config):
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        tell(list(pool.map(square, [config.x])))


if __name__ == "__main__":
    main()
