"""Estimator, configuration, optimizers, hooks."""
