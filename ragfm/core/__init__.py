"""Values, errors, settings, the plugin registry and text utilities: what all other packages build on."""
