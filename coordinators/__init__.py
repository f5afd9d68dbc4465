"""Ray actors that sequence work, and what shows it: tracking, live view and report."""
