"""One file per notebook: what it fits, tabulates and records. Every function takes the `Lab`
first.
"""
