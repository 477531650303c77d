"""Training: the losses, the solver's loop and what hangs on it."""
