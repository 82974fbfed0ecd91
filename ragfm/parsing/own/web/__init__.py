"""Parsers for formats of the web.

html            HTML
html_tree       the tree of a page: traversal, invisible elements, layout tables
main_content    the part of a page that is not navigation
epub            EPUB
mail_message    EML, MSG and mbox
"""
