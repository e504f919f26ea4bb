"""Charts, curves and pictures of predictions."""
