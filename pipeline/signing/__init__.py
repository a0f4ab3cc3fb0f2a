"""Signatures of bundles: who signs, whom this home trusts, and what may be loaded."""
