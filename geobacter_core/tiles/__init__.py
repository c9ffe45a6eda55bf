"""Tiles: styles, sources that render chunks, the cache that keeps them, and windows cut from it."""
