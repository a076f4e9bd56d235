"""The demo: the main job, small, on prose that is already on the machine."""
