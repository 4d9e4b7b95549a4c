"""Processes on a node or a cluster, started, watched and restarted by Ray; nothing here knows about the stages."""
