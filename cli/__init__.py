"""The command line of sortify: it parses, calls sortify and prints."""
