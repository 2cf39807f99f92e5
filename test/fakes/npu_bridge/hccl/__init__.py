"""Collectives as ops."""
