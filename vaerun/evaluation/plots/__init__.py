"""Pictures for TensorBoard and files."""
