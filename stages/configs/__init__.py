"""The options of every command: what the command line, recipes and fingerprints are built from. Nothing heavy is imported here."""
