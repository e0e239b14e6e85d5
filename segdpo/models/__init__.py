"""Networks: the segmenter factory, adapters, freezing, weights on disk."""
