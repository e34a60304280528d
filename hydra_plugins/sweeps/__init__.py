"""Doors to the sweep engine for any Hydra application: `hydra/launcher=quota` and `hydra/sweeper=grid`.

Hydra imports these modules at every start of every application, so they hold settings and hand over: the work is done
by `sweeps.hydra_apps`, which is loaded once a multirun begins.
"""
