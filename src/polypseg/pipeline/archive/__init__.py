"""Archives: any number of frames, in folders, object stores and manifests, answered once each by one or many workers.

``sources`` lists the frames, ``plan`` parts them, ``worker`` answers one part after another, ``rows`` says what an
answer looks like, ``store`` is where everything goes, ``run`` leads through it, and ``ray`` has many workers do it.
"""
