"""Arrays in, Segmentations out: runtimes, test-time augmentation, the field of view, tracking."""
