"""A segmenter as a distribution over masks: log-probabilities, entropies, divergences and samples."""
