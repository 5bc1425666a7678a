"""Reads records and models, and makes tables and figures of them; never trains."""
