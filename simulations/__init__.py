"""Fleets of devices on one machine: the demo, runs on real photographs, and what they are held against."""
