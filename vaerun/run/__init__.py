"""One run, from its settings to its results: build the parts, train, evaluate, record."""
