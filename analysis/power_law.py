"""Fits of scaling laws, under the name by which programs import them."""

from analysis.laws.power_law import (
    fit_chinchilla,
    fit_critical_batch,
    fit_loss_compute,
    fit_power_law,
    fit_power_product,
)

__all__ = ["fit_chinchilla", "fit_critical_batch", "fit_loss_compute", "fit_power_law", "fit_power_product"]
