"""What strangers may send: mutated image files, and requests made from the OpenAPI document. `make fuzz` runs both."""
