#!/bin/bash
#SBATCH --job-name=sample-f53401-000004
#SBATCH --comment=sample-f53401-000004
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=1
#SBATCH --time=5
#SBATCH --output=@ROOT@/sweeps/sample/cluster/logs/sample-f53401-000004.log
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --no-requeue
#SBATCH --partition=gpu
#SBATCH --account=lab
export PYTHONPATH=@ROOT@/code/59712e2d21aa"${PYTHONPATH:+:$PYTHONPATH}"
exec @PYTHON@ -P -m sweeps.clusters.slurm_job @ROOT@/sweeps/sample/cluster/requests/sample-f53401-000004.json
