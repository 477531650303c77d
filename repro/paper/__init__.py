"""What the papers report: their runs, the numbers they print, and how close a run must come."""
