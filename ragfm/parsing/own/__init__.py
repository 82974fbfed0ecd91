"""ragfm's own parsers: one module per text format here, the other formats in sub-packages.

own_parser        the plugin `ragfm`, which calls the others; plain text
markdown          Markdown
delimited_text    CSV and TSV
json_text         JSON
xml_text          XML
source_code       source code, split at definitions
"""
