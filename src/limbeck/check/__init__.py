"""The common suite: what every method must pass, for the library and for its users."""
