"""Lightning callbacks, one file a subject; the public ones are names of segdpo.training."""
