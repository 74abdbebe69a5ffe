"""Networks and checkpoint loading: torch, no web, no data set. Imports nothing of service or training."""
