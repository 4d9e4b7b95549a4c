"""Optimize policies and critics: batches, losses, the masked output head, and the engines (torch, DeepSpeed)."""
