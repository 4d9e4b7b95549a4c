"""What knows the order of the stages: recipes, whole runs, SLURM arrays, and the state of a run."""
