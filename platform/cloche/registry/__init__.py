"""Plugins as data: manifests, digests, the catalog, frozen copies and wheels. Nothing here imports or runs plugin code."""
