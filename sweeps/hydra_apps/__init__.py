"""The multirun of any Hydra application through the sweep engine.

`grid_sweep` turns a sweep file and a command line into the overrides of each job; `launch` makes a piece of work of
each job, runs the controller and hands back what the jobs returned; `program` is the application as jobs get it,
`place` which folder a command's state is in, `settings` what the launcher's config means to the engine.
"""
