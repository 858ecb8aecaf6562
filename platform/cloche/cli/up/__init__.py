"""``cloche up``: every process of one machine under one supervisor."""
