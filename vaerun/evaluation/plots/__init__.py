"""Pictures for TensorBoard and figure files."""
