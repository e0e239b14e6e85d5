"""The main job, stage by stage: a reference, preferences, a policy, a comparison. `train.py` runs it."""
