"""What `scripts/gpu.py` runs on a machine with CUDA."""
