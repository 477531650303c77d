"""One experiment: its data, its folder, the chain of its stages, and what a family of runs needs."""
