"""Fleets of devices on one machine: the demo, real photographs, and what they are held against."""

from common.quiet_dependencies import quiet_dependencies

quiet_dependencies()
