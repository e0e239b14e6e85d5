"""From files, packs and generators to batches that a preference loss can eat."""
