"""New voxels on a frozen encoder: matching, gradient, both."""
