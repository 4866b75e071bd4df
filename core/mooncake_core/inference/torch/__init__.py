"""The torch engine: any Hugging Face causal language model, with paged attention of our own."""
