"""Rows, tables and pictures of the learning benchmark."""
