"""The machinery of nanoproxy, which a reader of the lesson may skip."""
