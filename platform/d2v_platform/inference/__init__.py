"""Using models on data sets, recordings and images: transcripts, events, classes, embeddings, scores."""
