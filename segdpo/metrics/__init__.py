"""How good masks are, and how sure one can be of it."""
