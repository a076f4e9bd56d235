"""Models in MLflow's registry: lineage, gates, safe packages."""
