"""The vLLM engine behind the sampling protocol."""
