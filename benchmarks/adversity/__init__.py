"""Tries to break the product: kills, mutated files, hostile input, full disks. Each item prints what was tried."""
