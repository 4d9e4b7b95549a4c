"""Define the options of every command. Nothing heavy (torch, numpy, pyarrow) is imported in this package."""
