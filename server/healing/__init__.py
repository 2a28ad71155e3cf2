"""Healing: what is cut out of the backbone is taught, on public images, to give its features again."""
