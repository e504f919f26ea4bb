"""The DICOM network: images come in by C-STORE, their segmentations go out by C-STORE or STOW-RS.

The way of an object: ``association`` bounds what a caller may send, ``receive`` answers it when the object is on disk
and in the ``worklist``, ``segment`` makes its segmentation, ``send`` delivers that, ``commitment`` asks whether
it is kept. ``run`` starts and stops them.
"""
