"""The PDF parser: `pdf_document` is the entry point."""
