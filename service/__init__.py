"""The REST service. Imports models, never training."""
