"""Into a store and out of it: `aegis_file` reads the orchestrator's state files, `aegis_import` brings them in."""
