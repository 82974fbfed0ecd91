"""Parsers of other libraries, as plugins.

unstructured_parser    unstructured (extra `unstructured`)
docling_parser         docling (extra `docling`)
"""
