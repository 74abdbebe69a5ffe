"""Recipes: one TOML file per run."""
