"""Parsers for HTML, EPUB and mail."""
