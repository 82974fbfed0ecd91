"""Connectors that ship with ragfm: one file for each, registered as entry points of `ragfm.connectors`."""
