"""The embedded engine: Hugging Face decoders with shared prefixes and continuous batching."""
