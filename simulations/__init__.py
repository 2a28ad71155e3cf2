"""Fleets of devices on one machine: the demo, real photographs, and what they are held against."""
