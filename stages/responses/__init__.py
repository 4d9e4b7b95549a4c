"""Turn questions into graded responses: prompts, sampling, decoding, verification; single responses and trees."""
