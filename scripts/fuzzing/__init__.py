"""What `make fuzz` is made of: samples of every kind of file, mutations, and workers that watch the readers."""
