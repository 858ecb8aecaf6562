"""The audit trail's format v1, without the platform: canonical bytes, Merkle tree, signed notes, keys, and the check of a whole trail."""
