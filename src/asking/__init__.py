"""What ``ask.py`` is made of."""
