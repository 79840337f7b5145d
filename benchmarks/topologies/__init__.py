"""The networks that are measured, one family a file; `networks.py` beside this folder names them all."""
