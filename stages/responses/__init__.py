"""From questions to graded responses: prompts, sampling, decoding and verification; chains and trees."""
