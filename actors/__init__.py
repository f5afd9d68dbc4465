"""Ray actors that do the work. An actor is a thin shell around a function from `phases`."""
