"""Evaluation of a trained model: everything that the settings ask for, and where its results go."""
