"""Fusion of all-reduces."""
