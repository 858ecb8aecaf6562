"""Level ``namespace``: warm containers whose slots make a fresh cell for each job."""
