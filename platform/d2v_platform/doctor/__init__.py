"""``d2v doctor``: what is wrong with this installation, its services and what runs left behind."""
