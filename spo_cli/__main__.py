"""`python -m spo_cli` is `spo`."""

from spo_cli.app import main

main()
