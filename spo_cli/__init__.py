"""The command line of spo: flags → Config → stage → exit code."""
