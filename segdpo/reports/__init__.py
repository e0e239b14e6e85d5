"""What a run leaves for people to look at: panels of masks, curves, tables."""
