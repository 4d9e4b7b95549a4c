"""A run's metrics: one log on disk, and the trackers that mirror it (TensorBoard, Weights & Biases)."""
