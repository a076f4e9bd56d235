"""Transformer language models: what they are, how they learn, and how a search asks them for scores."""
