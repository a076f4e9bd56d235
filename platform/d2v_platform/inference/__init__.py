"""Using speech models on data sets and recordings: decoding, error rates, transcripts."""
