"""Schedule templates for CUDA."""
