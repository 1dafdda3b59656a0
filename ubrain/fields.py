"""Receptive fields and attention maps of voxels."""
