"""Service: engines of any kind as replicas over Ray."""
