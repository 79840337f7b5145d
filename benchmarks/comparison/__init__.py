"""Measures a network beside its peers and says what was found; `peers.py` beside this folder is the command."""
