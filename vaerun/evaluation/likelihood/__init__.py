"""Estimates of log p(x), inference gaps and gradient noise."""
