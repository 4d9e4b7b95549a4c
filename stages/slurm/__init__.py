"""Jobs of a SLURM cluster: what each requests, its script, its state."""
