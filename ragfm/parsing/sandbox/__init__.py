"""Parsing in confined worker processes."""
