"""Score evaluations by task, budget and group, compare two evaluations, and grade saved responses again."""
