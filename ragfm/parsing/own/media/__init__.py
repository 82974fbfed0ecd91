"""Parsers for images and recordings."""
