"""Parsers for office documents."""
