"""What was shown, what was measured, and where the voxel sits."""
