"""A model and its example inputs, from what the user names; nothing here runs code from a file unasked."""
