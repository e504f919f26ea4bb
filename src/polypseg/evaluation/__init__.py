"""From a model, or predictions of another program, to a report: scores, thresholds, comparisons."""
