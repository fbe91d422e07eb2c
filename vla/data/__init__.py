"""Datasets: written while playing, read as shuffled windows while training."""
