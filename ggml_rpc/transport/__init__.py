"""Byte streams. Nothing here knows what the bytes mean."""
