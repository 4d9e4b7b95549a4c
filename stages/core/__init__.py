"""What every room may use: errors, options, progress, files and paths. Nothing here knows about models or tables."""
