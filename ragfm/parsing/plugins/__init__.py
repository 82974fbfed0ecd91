"""Parsers of other libraries, as plugins.

unstructured_parser    unstructured (extra `unstructured`)
docling_parser         docling (extra `docling`)
trafilatura_parser     the main text of web pages (extra `trafilatura`)
"""
