"""A task is questions, a prompt and a verifier."""
