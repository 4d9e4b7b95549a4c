"""Find, check, load, save, adapt and copy model directories in the Hugging Face layout."""
