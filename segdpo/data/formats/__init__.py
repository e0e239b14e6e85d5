"""Forms of a data set on disk, one module each."""
