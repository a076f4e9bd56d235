"""Training one recipe: plan, launch on Ray, the loop, checkpoints."""
