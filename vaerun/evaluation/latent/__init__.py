"""Analysis of the latent space."""
