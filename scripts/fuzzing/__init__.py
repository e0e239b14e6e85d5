"""Parts of `make fuzz`: samples of every kind of file, mutations, and workers that watch the readers."""
