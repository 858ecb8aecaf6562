"""Hostile probes against this host: what is tried, what was expected before, and the verdict."""
