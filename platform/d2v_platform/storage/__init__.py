"""Where bytes lie: local folders, ``s3://`` and every other fsspec URI, behind one set of verbs."""
