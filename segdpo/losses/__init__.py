"""Preference losses: objectives, anchors, and what puts them together."""
