"""The connectors that ship with ragfm, one module each, registered as entry points of `ragfm.connectors`."""
