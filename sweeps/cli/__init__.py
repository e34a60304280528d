"""The commands of `muloco-sweep`, and the controller as a SLURM job."""
