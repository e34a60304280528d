"""MuLoCo and DiLoCo for JAX: gradient transformations of Optax. Needs the extra `jax`, and no torch.

    from muloco_runner.jax import paper_muloco
    optimizer = paper_muloco(learning_rate=0.02)        # or optax.chain(optax.clip_by_global_norm(1.0), paper_muloco())

`muloco` and `diloco` are Optax's Muon and AdamW in `muloco_wrapper`, with the signatures and defaults of muloco-1, the
authors' package; `paper_muloco` and `paper_diloco` have the settings of the study (arXiv 2505.23725), by the rule of
`muloco_runner.optimizers.Muon`, with every setting of it. State is float32 also where parameters are narrower.
"""

try:
    import jax  # noqa: F401
    import optax  # noqa: F401
except ModuleNotFoundError as error:
    words = f'muloco_runner.jax needs jax and optax ({error}): pip install "muloco-sweeps[jax]"'
    raise ModuleNotFoundError(words, name=error.name) from error

from muloco_runner.jax.hidden_matrices import hidden_matrices
from muloco_runner.jax.outer_steps import MuLoCoState, muloco_wrapper
from muloco_runner.jax.paper import paper_adamw, paper_diloco, paper_muloco, paper_muon
from muloco_runner.jax.published import diloco, muloco

__all__ = [
    "MuLoCoState",
    "diloco",
    "hidden_matrices",
    "muloco",
    "muloco_wrapper",
    "paper_adamw",
    "paper_diloco",
    "paper_muloco",
    "paper_muon",
]
