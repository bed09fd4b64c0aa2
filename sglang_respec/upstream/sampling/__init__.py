"""Coupled sampling in SGLang: every token it draws is this project's definition of a token."""
