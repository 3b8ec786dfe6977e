"""Model libraries: the only modules that import one, and what these have in common."""
