"""data2vec and data2vec 2.0: models, objectives, data and heads in PyTorch, usable without the platform."""
