"""Parsers for images and audio."""
