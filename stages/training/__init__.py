"""The parts of `spo train` and `spo sft`: inputs, examples, fixed log-probabilities, steps, critic, resumable runs."""
