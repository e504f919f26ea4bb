"""Scores of arrays, and the statistics of scores. Knows no file and no model."""
