"""The configuration: its schema, allowed values, plug-ins and overrides."""
