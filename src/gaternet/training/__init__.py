"""One loop for every phase of every recipe."""
