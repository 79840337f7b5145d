"""What the templates share: kernels read as stages, the algebra of their indices, loops cut and written."""
