"""Parsers for DOCX, PPTX, spreadsheets, OpenDocument, RTF, and the Office formats before 2007."""
