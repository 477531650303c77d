"""Training: the losses, the solver's loop and its hooks."""
