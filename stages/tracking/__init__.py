"""The metrics of a run: one log on disk, and trackers that show it (TensorBoard, Weights & Biases)."""
