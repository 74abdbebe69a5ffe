"""The same task behind other frameworks, each as its documentation would have it. Run in the peers' environment."""
