"""Training: tasks, references, callbacks, the main job from start to end, and trained networks back from disk."""
