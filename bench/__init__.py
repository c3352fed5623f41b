"""Figures of Mayfly beside those of its peers, taken in one run."""
