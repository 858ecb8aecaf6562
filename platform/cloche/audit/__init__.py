"""The audit trail's format v1, without a database: canonical bytes, HMAC, Merkle tree, signed notes, keys, and the check of a whole trail."""
