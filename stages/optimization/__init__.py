"""The policy step: batches, losses, the masked output head, and the engines that run it (torch, DeepSpeed)."""
