"""The only layer that sees settings: builds the parts, trains, evaluates, records (layer L7)."""
