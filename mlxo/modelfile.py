"""Modelfile text <-> directives."""
