"""Rows: reading, rules, generated demonstration data, overlap."""
