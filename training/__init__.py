"""Builds the checkpoints that the service serves. Imports models, never service."""
