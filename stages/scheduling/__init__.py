"""Jobs of a cluster: what each asks for, its script, what SLURM says of it, and how far its artefact is."""
