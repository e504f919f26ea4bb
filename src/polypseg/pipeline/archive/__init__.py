"""Archives: any number of frames, in folders, object stores and manifests, predicted once each by one or many workers.

``sources`` lists the frames, ``plan`` partitions them, ``worker`` predicts one partition after another, ``rows`` says
what a prediction's row is, ``store`` is where everything goes, ``run`` leads through it, and ``ray`` has many workers
do it.
"""
