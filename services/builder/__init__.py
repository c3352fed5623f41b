"""Builds: from source to something that a driver can start. Owns builds and environments."""
