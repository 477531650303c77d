"""Readers that run in a process of their own, with limits: see `weights_conversion.guard`."""
