"""Bytes into the pool, versions to the peers."""
