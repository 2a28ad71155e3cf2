"""What device and server share: the words of the method, and how they cross the wire."""

from common.quiet_dependencies import quiet_dependencies

quiet_dependencies()
