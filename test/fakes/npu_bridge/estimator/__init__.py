"""Estimator and ops."""
