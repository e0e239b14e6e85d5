"""Callbacks: what watches a run and is no part of its arithmetic; conf/callbacks/ puts them together."""
