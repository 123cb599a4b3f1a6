"""Estimates of log p(x) and of what is lost to inference."""
