"""The command line: a client of the REST API, the entries of every process, and the supervisor behind ``cloche up``."""
