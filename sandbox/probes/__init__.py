"""The hostile plugin of ``cloche doctor --sandbox``: what it tries from inside. What must come of it stands in ``cloche.sandboxd.probes``."""
