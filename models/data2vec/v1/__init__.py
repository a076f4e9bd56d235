"""The models of the first data2vec paper (arXiv 2202.03555)."""
