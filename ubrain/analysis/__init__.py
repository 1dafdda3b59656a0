"""What is done with predictions and embeddings: baselines, statistics, clusters, fields."""
