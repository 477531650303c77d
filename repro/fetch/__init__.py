"""Getting the data sets and weights: catalogue, downloads, archives, SBD's masks, and the check of a tree."""
