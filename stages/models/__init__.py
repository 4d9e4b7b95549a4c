"""Model directories in the Hugging Face layout: found, checked, loaded, saved, adapted and copied."""
