"""Functions on [0, 1] with their integrals."""

import math

FUNCTIONS = {"exp": (math.exp, math.e - 1), "sin": (math.sin, 1 - math.cos(1))}
