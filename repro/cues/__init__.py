"""Stage 0: the classifiers, and the localization cues made of them."""
