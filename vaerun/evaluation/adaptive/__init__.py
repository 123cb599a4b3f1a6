"""Adaptive importance sampling of log p(x): search for modes, mixtures as proposals, adaptation, and its uses."""
