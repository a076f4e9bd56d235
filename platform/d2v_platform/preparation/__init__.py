"""``d2v prepare``: raw data to what recipes read."""
