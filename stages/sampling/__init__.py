"""Sampling engines behind one protocol: the embedded engine and vLLM draw the same tokens from the same keys."""
