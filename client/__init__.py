"""The device: it describes its task, adapts the sub-network it is assigned, and contributes a mask."""
