"""The only package that knows the order of the stages: recipes, whole runs, SLURM arrays, the state of a run."""
