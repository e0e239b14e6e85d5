"""Mask files: what they store, and how it becomes class ids."""
