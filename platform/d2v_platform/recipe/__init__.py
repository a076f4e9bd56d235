"""Recipes: typed configuration with the reference's names, composed by Hydra, checked before any start."""
