"""The device: it describes its task, adapts the sub-network it is assigned, and contributes a mask."""

from common.quiet_dependencies import quiet_dependencies

quiet_dependencies()
