"""Jobs on a SLURM cluster: their resources, scripts, submission and state."""
