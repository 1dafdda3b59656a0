"""Voxel embeddings -> clusters, their stability and their map."""
