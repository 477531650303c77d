"""The releases' Python layers, by their own module and class names."""
