"""Runs in MLflow: every metric once, also while the server is away."""
