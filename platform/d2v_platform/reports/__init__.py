"""Reports of runs and sweeps: one HTML file, a PNG and CSV files, from what MLflow holds."""
