"""Frames in and results out: pictures, masks, DICOM, video, JSON. Knows formats, knows no model."""
