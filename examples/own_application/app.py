"""A Hydra application that knows nothing of sweeps: the integral of a function by the midpoint rule."""

import math

import hydra
from functions import FUNCTIONS
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> float:
    """Returns the error, which an optimizing sweeper would take."""
    function, exact = FUNCTIONS[config.function]
    width = 1 / config.steps
    found = width * math.fsum(function((number + 0.5) * width) for number in range(config.steps))
    with open("error.txt", "w", encoding="utf-8") as file:
        file.write(f"{abs(found - exact):.3e}\n")
    return abs(found - exact)


if __name__ == "__main__":
    main()
