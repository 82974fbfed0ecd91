"""The PDF parser.

pdf_document      the entry point: pages in reading order, headings
pdf_page          the content of a page: words, rules, images, hidden text
pdf_margins       page numbers and running titles
pdf_contents      tables of contents
pdf_drawing       rules, filled areas, images and links
pdf_lines         words to lines, lines to paragraphs; hyphens at the end of a line
pdf_layout        tables, columns and paragraphs in reading order
pdf_tables        tables with and without rules
pdf_numbers       tables of numbers, as in financial reports: their extent and rows
pdf_number_cells  cells of a line
pdf_number_columns  columns and their headers
pdf_figures       pictures that are figures
pdf_visibility    which words are visible
pdf_types         boxes and words
"""
