"""Parsers for office documents.

docx              DOCX, with docx_styles (headings, lists) and docx_numbering (numbers and bullets)
pptx              PPTX
spreadsheets      XLSX, XLSM, XLSB, XLS, ODS
odf               ODT and ODP
rtf               RTF
legacy_office     DOC and PPT, through LibreOffice
office_xml        XML parts and the relations between them
office_charts     charts as tables
zip_container     archives, opened safely
"""
