"""From sources to outputs by a Segmenter: pictures, DICOM, videos, cameras, archives."""
