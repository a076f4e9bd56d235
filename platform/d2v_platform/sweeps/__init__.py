"""Sweeps: many trainings on Ray Tune, compared, tabulated, and the best of each task registered."""
