"""Evaluation of a trained model as configured, and writing of the results."""
