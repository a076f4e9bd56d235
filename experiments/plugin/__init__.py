"""A modality that data2vec does not have: series of several channels, such as sensors or the lines of a scan.

d2v train experiments/plugin/series.yaml task.data=FOLDER        # python experiments/plugin/digits.py FOLDER
"""

from . import series_task  # noqa: F401  # registers task, model and how it is served
