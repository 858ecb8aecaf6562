"""Handlers of the REST API: each translates a request into one call of a service."""
