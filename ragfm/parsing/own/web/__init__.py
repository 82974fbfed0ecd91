"""Parsers for formats of the web.

html            HTML
epub            EPUB
mail_message    EML and MSG
"""
