"""The multirun of any Hydra application through the sweep engine.

`grid_sweep` turns a sweep file and a command line into the overrides of each job; `launch` makes a piece of work of
each job, runs the controller and returns what the jobs returned; `program` is the application as jobs load it, with
its script (`main_script`) and source (`sources`); `job_progress` is what jobs say of themselves;
`state_folder` the folder with a command's state, `launcher_settings` translates the launcher's config for the engine.
"""
