"""Plugins that give any Hydra application the sweep engine: `hydra/launcher=quota` and `hydra/sweeper=grid`.

Hydra imports these modules at every start of every application, so they hold settings only: the work is done
by `sweeps.hydra_apps`, which is loaded when a multirun starts.
"""
